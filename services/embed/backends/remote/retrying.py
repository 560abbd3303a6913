"""When a failed request is sent again, and after how long."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, TypeAlias

Clock: TypeAlias = Callable[[], float]
"""Seconds that only grow."""

MOST_TRIES: Final = 3
"""Requests for one batch, the first included."""
LONGEST_RETRY_AFTER_SECONDS: Final = 3600.0
_FIRST_WAIT_SECONDS = 0.25
_LONGEST_WAIT_SECONDS = 8.0
_BUDGET = 10.0
_EARNED_PER_REQUEST = 0.2


class RetryBudget:
    """Allows one retry in five requests, and ten at once. Threads share it.

    Without it a provider that fails half of its requests would get twice the load.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left = _BUDGET

    def note_request(self) -> None:
        """Earns a part of a retry."""
        with self._lock:
            self._left = min(_BUDGET, self._left + _EARNED_PER_REQUEST)

    def spend(self) -> bool:
        """Takes a retry, if one is left."""
        with self._lock:
            if self._left < 1:
                return False
            self._left -= 1
            return True


def backoff_seconds(tries: int, *, jitter: Callable[[], float] = random.random) -> float:
    """Returns how long to wait after so many tries: doubled each time, half of it by chance."""
    longest: float = min(_LONGEST_WAIT_SECONDS, _FIRST_WAIT_SECONDS * 2 ** (tries - 1))
    return longest * (1 + jitter()) / 2


def retry_after_seconds(value: str | None, *, sent_at: str | None) -> float | None:
    """Returns what the header Retry-After asks for: seconds, or the time until a date.

    A date counts from the answer's own Date header, so that neither side's wall clock has to be
    right. None when the header is missing or makes no sense.
    """
    if value is None:
        return None
    if value.strip().isdecimal():
        # Digits without end are no number of seconds that anybody meant.
        return min(float(value.strip()[:10]), LONGEST_RETRY_AFTER_SECONDS)
    until, now = _date(value), _date(sent_at) or datetime.now(UTC)
    if until is None:
        return None
    return min(max(0.0, (until - now).total_seconds()), LONGEST_RETRY_AFTER_SECONDS)


def _date(value: str | None) -> datetime | None:
    try:
        date = parsedate_to_datetime(value or "")
    except (ValueError, OverflowError):  # the latter of a year or a zone beyond all numbers
        return None
    return date if date.tzinfo is not None else date.replace(tzinfo=UTC)
