"""One distinct text on its way through the model, and the requests that wait for it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias

from opentelemetry import trace

from services.embed.packing import forward_tokens

if TYPE_CHECKING:
    from services.embed.model import Lane, TokenIds, Vectors
    from services.runtime.errors import LodestoneError

Result: TypeAlias = "Vectors | LodestoneError"
"""A row of the model, shape (dimensions,), or why there is none."""
WorkKey: TypeAlias = tuple[bytes, str]
"""What the model reads: token ids, and the route. Texts with one key share a forward, whatever each
is cut to or laid out as."""


_MOST_LINKS = 64


class Request:
    """The texts of one call; its future ends when the last of them has.

    `span` is that of the call, so that the forward which serves it can point back.
    """

    def __init__(self, count: int) -> None:
        self.span = trace.get_current_span().get_span_context()
        self.results: list[Result | None] = [None] * count
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._left = count

    def settle(self, position: int, result: Result) -> None:
        """Notes how one text ended; each position once."""
        assert self.results[position] is None
        self.results[position] = result
        self._left -= 1
        if self._left == 0 and not self.future.done():
            self.future.set_result(None)


@dataclass(slots=True, eq=False)
class Work:
    """A text that waits or runs. Only the event loop changes it; engine threads read it."""

    serial: int
    key: WorkKey
    ids: TokenIds
    lane: Lane
    caller: str = ""
    """Whoever asked for it first."""
    waiters: list[tuple[Request, int]] = field(default_factory=list)

    @property
    def route(self) -> str:
        """Route that its batch takes; empty when the model has no routes."""
        return self.key[1]

    @property
    def tokens(self) -> int:
        """Length in tokens."""
        return len(self.ids)

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits for it any more: all its requests were cancelled."""
        return all(request.future.done() for request, _ in self.waiters)

    def settle(self, result: Result) -> None:
        """Tells all that wait."""
        for request, position in self.waiters:
            request.settle(position, result)


@dataclass(frozen=True, slots=True)
class Batch:
    """Works that share a forward; all come from one lane and take one route.

    Some may be withdrawn before it begins.
    """

    works: list[Work]
    lane: Lane
    padded: bool = True
    """Whether the backend pads all texts to the longest."""

    @property
    def tokens(self) -> int:
        """Tokens of the forward, padding included."""
        return forward_tokens([work.tokens for work in self.works], padded=self.padded)

    def links(self) -> list[trace.Link]:
        """Returns links to the calls that wait for this forward, each once, and not too many."""
        spans = {
            request.span.span_id: request.span
            for work in self.works
            for request, _ in work.waiters
            if request.span.is_valid
        }
        return [trace.Link(span) for span in islice(spans.values(), _MOST_LINKS)]
