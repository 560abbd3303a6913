"""Bounds what waits for the model, so that an overload is told at once and not by a timeout."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

from services.embed import metrics
from services.embed.cost import CostModel
from services.embed.model import Lane
from services.runtime.errors import OverloadedError

if TYPE_CHECKING:
    from types import TracebackType

_BULK_SHARE = 0.9
"""Bulk may fill this share of the queue: the rest is kept for those who wait."""
_CAUTION = 1.15
"""A call is let in with this much to spare: a machine slows down for a second now and then. While
more comes than can be served this loses nothing, as somebody else is served instead."""
_LEAST_RETRY_SECONDS = 0.1
_MOST_RETRY_SECONDS = 30.0


class Admission:
    """Counts tokens and bytes of all texts that wait or run. Used on the event loop alone.

    Args:
        max_tokens: most tokens that wait or run.
        max_bytes: most bytes of text.
        concurrency: forwards that run at once.
        batch_tokens: tokens of a usual forward.
        window_tokens: most tokens that come later and may still run before.
    """

    def __init__(
        self,
        *,
        max_tokens: int,
        max_bytes: int,
        concurrency: int,
        batch_tokens: int,
        window_tokens: int = 0,
    ) -> None:
        self._max_tokens = max_tokens
        self._max_bytes = max_bytes
        self._concurrency = concurrency
        self._batch_tokens = batch_tokens
        self._window_tokens = window_tokens
        self._tokens_of = dict.fromkeys(Lane, 0)
        self._bytes = 0
        self._cost = CostModel()
        self._room = asyncio.Event()
        self._in_line = {lane: asyncio.Lock() for lane in Lane}

    @property
    def tokens(self) -> int:
        """Tokens that are admitted now."""
        return sum(self._tokens_of.values())

    def admit(
        self, *, tokens: int, size: int, lane: Lane, deadline_seconds: float | None = None
    ) -> Ticket:
        """Takes in texts of so many tokens and bytes until the ticket is given back.

        A request larger than the whole queue is taken when nothing else is there: it could never
        be served otherwise.

        Raises:
            OverloadedError: there is no room, or what waits already takes longer than the caller
                does; it tells when to come back.
        """
        waiting = self.tokens
        if waiting > 0 and not self._has_room(tokens, size, lane):
            # Half of what waits: by then there is room for a request of usual size.
            raise self._refusal("full", "Too many texts wait for the model.", waiting / 2)
        if deadline_seconds is not None and waiting > 0:
            ahead = self._tokens_ahead(lane)
            # Packing by length takes some of what comes later first, as much as a window.
            passing = min(self._window_tokens, self._tokens_of[lane])
            needed = _CAUTION * self._seconds(ahead + tokens + passing)
            excess = needed - deadline_seconds
            if excess > 0:
                late = ahead * min(1.0, excess / max(self._seconds(ahead), 1e-6))
                raise self._refusal("deadline", "The deadline is too close for what waits.", late)
        return Ticket(self, tokens, size, lane)

    async def admit_when_room(self, *, tokens: int, size: int, lane: Lane) -> Ticket:
        """Like `admit`, but waits for room, behind those of its lane who wait already.

        Without that order a large group would wait for as long as smaller ones come.
        """
        async with self._in_line[lane]:
            while self.tokens > 0 and not self._has_room(tokens, size, lane):
                self._room.clear()
                await self._room.wait()
            return Ticket(self, tokens, size, lane)

    def note_forward(self, tokens: int, seconds: float) -> None:
        """Learns how long one forward of texts of so many tokens took, padding not counted.

        What waits is counted without padding as well: no batch has been made of it yet.
        """
        self._cost.observe(tokens, seconds)

    def change(self, lane: Lane, tokens: int, size: int) -> None:
        """Adds to what is admitted; negative when something left."""
        self._tokens_of[lane] += tokens
        self._bytes += size
        assert self._tokens_of[lane] >= 0
        assert self._bytes >= 0
        metrics.ADMITTED_TOKENS.inc(tokens)
        if tokens < 0 or size < 0:
            self._room.set()

    def _has_room(self, tokens: int, size: int, lane: Lane) -> bool:
        share = _BULK_SHARE if lane is Lane.BULK else 1.0
        return (
            self.tokens + tokens <= self._max_tokens * share
            and self._bytes + size <= self._max_bytes * share
        )

    def _tokens_ahead(self, lane: Lane) -> int:
        """Returns what runs before a text that comes now: a query passes all bulk but what runs."""
        bulk = self._tokens_of[Lane.BULK]
        if lane is Lane.INTERACTIVE:
            bulk = min(bulk, self._concurrency * self._batch_tokens)
        return self._tokens_of[Lane.INTERACTIVE] + bulk

    def _seconds(self, tokens: float) -> float:
        seconds = self._cost.seconds(tokens, batch_tokens=self._batch_tokens)
        return seconds / self._concurrency

    def _refusal(self, reason: str, message: str, tokens: float) -> OverloadedError:
        """Returns the error that says when so many tokens will have gone."""
        metrics.REFUSALS.labels(reason).inc()
        seconds = min(max(self._seconds(tokens), _LEAST_RETRY_SECONDS), _MOST_RETRY_SECONDS)
        return OverloadedError(
            message,
            metadata={"limit": str(self._max_tokens), "queued": str(self.tokens)},
            retry_after_seconds=seconds,
        )


class Ticket:
    """A share of the queue, held as a context and given back at its end."""

    def __init__(self, admission: Admission, tokens: int, size: int, lane: Lane) -> None:
        self._admission = admission
        self._tokens = tokens
        self._size = size
        self._lane = lane
        admission.change(lane, tokens, size)

    def correct(self, tokens: int) -> None:
        """Replaces the guess of the number of tokens by what tokenizing found."""
        self._admission.change(self._lane, tokens - self._tokens, 0)
        self._tokens = tokens

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._admission.change(self._lane, -self._tokens, -self._size)
