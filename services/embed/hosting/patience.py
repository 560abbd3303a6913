"""How long a forward may take before its engine is taken as hung."""

from __future__ import annotations

import threading
from collections import deque
from statistics import median

_SLOWER_THAN_USUAL = 20.0
"""A forward that takes this many times what its tokens usually take may be taken as hung."""
_ANSWERS = 15
"""Answers that tell what is usual: a few that came late because the process was frozen, or the
machine busy, do not."""
_LEAST_TOKENS = 64
"""A forward of fewer tokens takes about as long, so that its time by token tells nothing."""


class Patience:
    """Seconds to wait for an answer: `least_seconds`, or more where forwards usually take longer.

    For any thread.
    """

    def __init__(self, least_seconds: float) -> None:
        self._least_seconds = least_seconds
        self._seconds_per_token: deque[float] = deque(maxlen=_ANSWERS)
        self._lock = threading.Lock()

    def note_answer(self, tokens: int, seconds: float) -> None:
        """Learns from a forward of so many tokens that answered."""
        with self._lock:
            self._seconds_per_token.append(seconds / max(tokens, _LEAST_TOKENS))

    def seconds(self, tokens: int) -> float:
        """Returns how long to wait for a forward of so many tokens."""
        with self._lock:
            usual = median(self._seconds_per_token or (0.0,))
        return max(self._least_seconds, _SLOWER_THAN_USUAL * usual * tokens)
