"""How many tokens a batch may have: halved when memory runs out, raised again little by little."""

from __future__ import annotations

import threading

_LEAST_TOKENS = 64
_GROWTH = 1 / 32
"""Share of the first budget that comes back at a time."""
_GOOD_BATCHES = 32
"""Full batches that must go well before the budget grows."""


class TokenBudget:
    """Additive increase, multiplicative decrease, as TCP does with its window (RFC 5681).

    For any thread.
    """

    def __init__(self, tokens: int) -> None:
        self._most = tokens
        self._tokens = tokens
        self._good = 0
        self._lock = threading.Lock()

    @property
    def tokens(self) -> int:
        """Padded tokens that a batch may have now."""
        return self._tokens

    def shrink(self, failed_tokens: int) -> None:
        """Notes that a batch of so many padded tokens found no memory."""
        with self._lock:
            self._tokens = max(
                min(self._tokens, failed_tokens) // 2, min(_LEAST_TOKENS, self._most)
            )
            self._good = 0

    def note_success(self, tokens: int) -> None:
        """Notes that a batch of so many padded tokens went well; only nearly full ones count."""
        if self._tokens == self._most or 2 * tokens < self._tokens:
            return
        with self._lock:
            self._good += 1
            if self._good >= _GOOD_BATCHES:
                self._good = 0
                growth = max(1, int(self._most * _GROWTH))
                self._tokens = min(self._most, self._tokens + growth)
