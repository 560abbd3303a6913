"""Stops asking a provider that does not answer, so that whoever waits is told at once."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from services.embed.backends.remote.retrying import Clock


class CircuitOpenError(Exception):
    """The provider failed too often in a row; it is asked again after `retry_after_seconds`."""

    def __init__(self, retry_after_seconds: float) -> None:
        super().__init__(f"{retry_after_seconds:.1f} s")
        self.retry_after_seconds = retry_after_seconds


class Circuit:
    """Opens after failures in a row, then lets one request through at a time. Threads share it.

    While it is open, one request each `open_seconds` may try whether the provider is back; its
    success closes the circuit. A request that was let through and never told how it ended blocks
    nothing: the next one goes after the same time.
    """

    def __init__(
        self, *, failures_to_open: int, open_seconds: float, clock: Clock = time.monotonic
    ) -> None:
        self._failures_to_open = failures_to_open
        self._open_seconds = open_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._next_try_at = 0.0

    @property
    def is_open(self) -> bool:
        """Whether requests are refused, but for the one that tries."""
        return self._failures >= self._failures_to_open

    def enter(self) -> None:
        """Lets a request pass.

        Raises:
            CircuitOpenError: the provider is not to be asked now.
        """
        with self._lock:
            if not self.is_open:
                return
            now = self._clock()
            if now < self._next_try_at:
                raise CircuitOpenError(self._next_try_at - now)
            self._next_try_at = now + self._open_seconds

    def succeeded(self) -> None:
        """Notes that the provider answered."""
        with self._lock:
            self._failures = 0

    def failed(self, count: int = 1) -> None:
        """Notes failures that are the provider's own."""
        with self._lock:
            self._failures += count
            if self.is_open:
                self._next_try_at = self._clock() + self._open_seconds
