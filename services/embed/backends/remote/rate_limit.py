"""Keeps requests and tokens a minute below what a provider allows."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from services.embed.backends.remote.retrying import Clock

BURST_SHARE: Final = 0.1
"""Share of a minute's allowance that may go at once; the rest flows evenly over the minute."""
_MINUTE_SECONDS = 60.0


class WaitTooLongError(Exception):
    """The limit would hold a request longer than it may wait; nothing was taken."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"{seconds:.1f} s")
        self.seconds = seconds


class RateLimit:
    """Two token buckets, and a hold that the provider itself asks for. Threads share it.

    A request takes its place at once and waits until the place is due, so that requests go in the
    order in which they came. No minute sees more than its allowance: a bucket holds a tenth of it
    and fills at the rate of the other nine tenths. A request larger than a bucket goes when the
    bucket is full, and those behind it wait for what it took in advance. A limit of 0 limits
    nothing.
    """

    def __init__(
        self,
        *,
        requests_per_minute: int,
        tokens_per_minute: int,
        clock: Clock = time.monotonic,
    ) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        now = clock()
        self._requests = _Bucket(requests_per_minute, now)
        self._tokens = _Bucket(tokens_per_minute, now)
        self._held_until = now

    def reserve(self, tokens: int, *, longest_wait_seconds: float) -> float:
        """Takes a place for one request of so many tokens; returns the seconds until it is due.

        Raises:
            WaitTooLongError: it would be due later than `longest_wait_seconds` from now.
        """
        with self._lock:
            now = self._clock()
            wait = max(
                self._requests.wait_seconds(1, now),
                self._tokens.wait_seconds(tokens, now),
                self._held_until - now,
            )
            if wait > longest_wait_seconds:
                raise WaitTooLongError(wait)
            self._requests.take(1)
            self._tokens.take(tokens)
            return wait

    def correct(self, *, reserved: int, used: int) -> None:
        """Gives back what a request did not use, or takes what it used beyond its estimate."""
        with self._lock:
            self._tokens.take(used - reserved)

    def hold(self, seconds: float) -> None:
        """Holds all requests back for a time, as the provider asked for."""
        with self._lock:
            self._held_until = max(self._held_until, self._clock() + seconds)

    @property
    def held_seconds(self) -> float:
        """Time for which requests are held back from now."""
        with self._lock:
            return max(0.0, self._held_until - self._clock())


class _Bucket:
    """A level that rises to its capacity with time; it is below zero while places are owed."""

    def __init__(self, per_minute: int, now: float) -> None:
        self._per_minute = per_minute
        self._capacity = max(1.0, per_minute * BURST_SHARE)
        self._per_second = max(per_minute - self._capacity, 1.0) / _MINUTE_SECONDS
        self._level = self._capacity
        self._filled_at = now

    def wait_seconds(self, amount: int, now: float) -> float:
        """Returns the time until `amount` may be taken."""
        if not self._per_minute:
            return 0.0
        risen = (now - self._filled_at) * self._per_second
        self._level = min(self._capacity, self._level + risen)
        self._filled_at = now
        missing = min(float(amount), self._capacity) - self._level
        return max(0.0, missing / self._per_second)

    def take(self, amount: int) -> None:
        """Lowers the level, below zero if need be."""
        self._level = min(self._capacity, self._level - amount)
