"""How long a call may take that others wait for: a little less than its own caller waits.

So a caller learns which service did not answer, where its deadline alone would tell nothing.
"""

from __future__ import annotations

import time
from contextvars import ContextVar

_RESERVE_SECONDS, _RESERVE_SHARE = 1.0, 0.25
"""What is left to answer the caller: so many seconds, or that share of its time if it is less."""

_UNTIL: ContextVar[float | None] = ContextVar("until", default=None)


def note_deadline(seconds: float | None) -> None:
    """Has the rest of this task, which handles one call, know how long its caller waits."""
    if seconds is None:
        _UNTIL.set(None)
        return
    reserve = min(_RESERVE_SECONDS, _RESERVE_SHARE * seconds)
    _UNTIL.set(time.monotonic() + seconds - reserve)


def seconds_at_most(seconds: float) -> float:
    """Returns for how long a call to another service may last, of so many seconds at most."""
    until = _UNTIL.get()
    return seconds if until is None else max(0.0, min(seconds, until - time.monotonic()))
