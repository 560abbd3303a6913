"""Bounds what waits for the model, so that an overload is told at once and not by a timeout."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Self

from services.embed import metrics
from services.embed.cost import CostModel
from services.embed.model import Lane
from services.runtime.errors import OverloadedError

if TYPE_CHECKING:
    from types import TracebackType

_BULK_SHARE = 0.9
"""Bulk may fill this share of the queue: the rest is kept for those who wait."""
_MOST_OF_REST = 8
"""A caller may hold this many times what is left free (dynamic thresholds, Choudhury and Hahne
1998): one alone nearly all of the queue, two nearly half each; who comes new finds some room."""
_MOST_PASSED = 0.25
"""Calls that do not wait may pass one that waits for room by this share of the queue; without an
end to it, a large group would wait for as long as small calls come."""
_CAUTION = 1.15
"""A call is let in with this much to spare: a machine slows down for a second now and then. While
more comes than can be served this loses nothing, as somebody else is served instead."""
_LEAST_RETRY_SECONDS = 0.1
_MOST_RETRY_SECONDS = 30.0


@dataclass(slots=True, eq=False)
class _Claim:
    """What a call wants to bring in."""

    tokens: int
    size: int
    lane: Lane
    caller: str
    passed: int = 0
    """Tokens that came later and were let in before."""


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
        self._tokens_by: Counter[str] = Counter()
        self._line: list[_Claim] = []

    @property
    def tokens(self) -> int:
        """Tokens that are admitted now."""
        return sum(self._tokens_of.values())

    def admit(
        self,
        *,
        tokens: int,
        size: int,
        lane: Lane,
        caller: str = "",
        deadline_seconds: float | None = None,
    ) -> Ticket:
        """Takes in texts of so many tokens and bytes until the ticket is given back.

        A request is taken whatever its size when nothing else of its lane is there: one larger than
        the queue could never be served otherwise, nor bulk while queries fill the queue.

        Raises:
            OverloadedError: there is no room, or what waits already takes longer than the caller
                does; it tells when to come back.
        """
        waiting = self.tokens
        claim = _Claim(tokens, size, lane, caller)
        passed = [other for other in self._line if self._is_before(other, claim)]
        most_passed = _MOST_PASSED * self._max_tokens
        if not self._fits(claim) or any(other.passed >= most_passed for other in passed):
            # Half of what waits: by then there is room for a request of usual size.
            raise self._refusal("full", "Too many texts wait for the model.", waiting / 2)
        if deadline_seconds is not None and waiting > 0:
            ahead = self._tokens_ahead(claim)
            # Packing by length takes some of what comes later first, as much as a window.
            passing = min(self._window_tokens, self._tokens_of[lane])
            needed = _CAUTION * self._seconds(ahead + tokens + passing)
            excess = needed - deadline_seconds
            if excess > 0:
                late = ahead * min(1.0, excess / max(self._seconds(ahead), 1e-6))
                raise self._refusal("deadline", "The deadline is too close for what waits.", late)
        for other in passed:
            other.passed += tokens
        return Ticket(self, claim)

    async def admit_when_room(
        self, *, tokens: int, size: int, lane: Lane, caller: str = ""
    ) -> Ticket:
        """Like `admit`, but waits for room, behind those of its lane who wait already.

        Without that order a large group would wait for as long as smaller ones come. Who has had
        its share holds up no other caller.
        """
        claim = _Claim(tokens, size, lane, caller)
        self._line.append(claim)
        try:
            while not self._may_enter(claim):
                self._room.clear()
                await self._room.wait()
            return Ticket(self, claim)
        finally:
            self._line.remove(claim)
            self._room.set()  # the next in line may have room as well

    def note_forward(self, tokens: int, seconds: float) -> None:
        """Learns how long one forward of texts of so many tokens took, padding not counted.

        What waits is counted without padding as well: no batch has been made of it yet.
        """
        self._cost.observe(tokens, seconds)

    def change(self, lane: Lane, tokens: int, size: int, caller: str = "") -> None:
        """Adds to what is admitted; negative when something left."""
        self._tokens_of[lane] += tokens
        self._bytes += size
        self._tokens_by[caller] += tokens
        assert min(self._tokens_of[lane], self._bytes, self._tokens_by[caller]) >= 0
        if not self._tokens_by[caller]:
            del self._tokens_by[caller]
        metrics.ADMITTED_TOKENS.inc(tokens)
        if tokens < 0 or size < 0:
            self._room.set()

    def _fits(self, claim: _Claim) -> bool:
        if not self._tokens_of[claim.lane]:
            return True
        share = _BULK_SHARE if claim.lane is Lane.BULK else 1.0
        return (
            self.tokens + claim.tokens <= self._max_tokens * share
            and self._bytes + claim.size <= self._max_bytes * share
            and self._has_share_left(claim)
        )

    def _has_share_left(self, claim: _Claim) -> bool:
        share = _BULK_SHARE if claim.lane is Lane.BULK else 1.0
        left = self._max_tokens * share - self.tokens
        return self._tokens_by[claim.caller] + claim.tokens <= _MOST_OF_REST * left

    def _may_enter(self, claim: _Claim) -> bool:
        ahead = takewhile(lambda other: other is not claim, self._line)
        return self._fits(claim) and not any(self._is_before(other, claim) for other in ahead)

    def _is_before(self, other: _Claim, claim: _Claim) -> bool:
        """Tells whether who waits already goes before one of its lane that comes later.

        Another caller's does not that waits for what this caller itself has in the queue to leave.
        """
        if other.lane is not claim.lane:
            return False
        waits_for_itself = self._tokens_by[other.caller] > 0 and not self._has_share_left(other)
        return other.caller == claim.caller or not waits_for_itself

    def _tokens_ahead(self, claim: _Claim) -> int:
        """Returns what runs before a text that comes now.

        A query passes all bulk but what runs. In its lane it waits for what is in the window, and
        then for no more of each other caller than it brings itself.
        """
        bulk = self._tokens_of[Lane.BULK]
        if claim.lane is Lane.INTERACTIVE:
            bulk = min(bulk, self._concurrency * self._batch_tokens)
        callers = len({*self._tokens_by, claim.caller})
        own = self._tokens_by[claim.caller] + claim.tokens
        ahead = self._tokens_of[Lane.INTERACTIVE] + bulk
        return min(ahead, self._window_tokens + callers * own) if self._window_tokens else ahead

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

    def __init__(self, admission: Admission, claim: _Claim) -> None:
        self._admission = admission
        self._claim = claim
        self._tokens = claim.tokens
        admission.change(claim.lane, claim.tokens, claim.size, claim.caller)

    def correct(self, tokens: int) -> None:
        """Replaces the guess of the number of tokens by what tokenizing found."""
        claim = self._claim
        self._admission.change(claim.lane, tokens - self._tokens, 0, claim.caller)
        self._tokens = tokens

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        claim = self._claim
        self._admission.change(claim.lane, -self._tokens, -claim.size, claim.caller)
