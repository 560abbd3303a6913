"""Bounds what waits for the model, so that an overload is told at once and not by a timeout."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

from services.embed import metrics
from services.embed.model import Lane
from services.runtime.errors import OverloadedError

if TYPE_CHECKING:
    from types import TracebackType

_BULK_SHARE = 0.9
"""Bulk may fill this share of the queue: the rest is kept for those who wait."""
_LEAST_RETRY_SECONDS = 0.1
_MOST_RETRY_SECONDS = 30.0
_RATE_WEIGHT = 0.1
_FIRST_GUESS_TOKENS_PER_SECOND = 4000.0


class Admission:
    """Counts tokens and bytes of all texts that wait or run. Used on the event loop alone."""

    def __init__(self, *, max_tokens: int, max_bytes: int) -> None:
        self._max_tokens = max_tokens
        self._max_bytes = max_bytes
        self._tokens = 0
        self._bytes = 0
        self._rate = _FIRST_GUESS_TOKENS_PER_SECOND
        self._room = asyncio.Event()

    @property
    def tokens(self) -> int:
        """Tokens that are admitted now."""
        return self._tokens

    def admit(self, *, tokens: int, size: int, lane: Lane) -> Ticket:
        """Takes in texts of so many tokens and bytes until the ticket is given back.

        A request larger than the whole queue is taken when nothing else is there: it could never
        be served otherwise.

        Raises:
            OverloadedError: there is no room; it tells when to come back.
        """
        share = _BULK_SHARE if lane is Lane.BULK else 1.0
        full = (
            self._tokens + tokens > self._max_tokens * share
            or self._bytes + size > self._max_bytes * share
        )
        if full and self._tokens > 0:
            raise OverloadedError(
                "Too many texts wait for the model.",
                metadata={"limit": str(self._max_tokens), "queued": str(self._tokens)},
                retry_after_seconds=self._retry_after_seconds(),
            )
        return Ticket(self, tokens, size)

    async def admit_when_room(self, *, tokens: int, size: int, lane: Lane) -> Ticket:
        """Like `admit`, but waits for room."""
        while True:
            try:
                return self.admit(tokens=tokens, size=size, lane=lane)
            except OverloadedError:
                self._room.clear()
                await self._room.wait()

    def note_rate(self, tokens: int, seconds: float) -> None:
        """Learns how fast one forward was."""
        if seconds > 0:
            self._rate += _RATE_WEIGHT * (tokens / seconds - self._rate)

    def change(self, tokens: int, size: int) -> None:
        """Adds to what is admitted; negative when something left."""
        self._tokens += tokens
        self._bytes += size
        assert self._tokens >= 0
        assert self._bytes >= 0
        metrics.ADMITTED_TOKENS.inc(tokens)
        if tokens < 0:
            self._room.set()

    def _retry_after_seconds(self) -> float:
        # Half of what waits: by then there is room for a request of usual size.
        seconds = self._tokens / 2 / max(self._rate, 1.0)
        return min(max(seconds, _LEAST_RETRY_SECONDS), _MOST_RETRY_SECONDS)


class Ticket:
    """A share of the queue, held as a context and given back at its end."""

    def __init__(self, admission: Admission, tokens: int, size: int) -> None:
        self._admission = admission
        self._tokens = tokens
        self._size = size
        admission.change(tokens, size)

    def correct(self, tokens: int) -> None:
        """Replaces the guess of the number of tokens by what tokenizing found."""
        self._admission.change(tokens - self._tokens, 0)
        self._tokens = tokens

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._admission.change(-self._tokens, -self._size)
