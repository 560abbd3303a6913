"""What a forward costs, learnt from those that ran."""

from __future__ import annotations

_FORGETTING = 0.98
_FIRST_OVERHEAD_SECONDS = 0.002
_FIRST_SECONDS_PER_TOKEN = 1 / 4000
_FIRST_TRUST = 1e-4
"""Weight of the first guess: a few forwards outweigh it."""


class CostModel:
    """Seconds of a forward as `overhead + tokens * seconds_per_token`.

    A least-squares line over the past with exponential forgetting (Ljung, "System Identification",
    recursive least squares), kept as its five sums. Used on the event loop alone.
    """

    def __init__(self) -> None:
        self._n = self._x = self._y = self._xx = self._xy = 0.0
        for tokens in (16.0, 1024.0):
            seconds = _FIRST_OVERHEAD_SECONDS + tokens * _FIRST_SECONDS_PER_TOKEN
            self._add(tokens, seconds, _FIRST_TRUST)

    def observe(self, tokens: int, seconds: float) -> None:
        """Learns from one forward of so many tokens, counted as those to be estimated are."""
        self._n *= _FORGETTING
        self._x *= _FORGETTING
        self._y *= _FORGETTING
        self._xx *= _FORGETTING
        self._xy *= _FORGETTING
        self._add(float(tokens), seconds, 1.0)

    def seconds(self, tokens: float, *, batch_tokens: int) -> float:
        """Returns the time of one stream for so many tokens, cut into batches of `batch_tokens`."""
        overhead, slope = self._line()
        batches = max(1.0, tokens / max(batch_tokens, 1))
        return overhead * batches + slope * tokens

    def _line(self) -> tuple[float, float]:
        spread = self._n * self._xx - self._x * self._x
        mean = self._y / self._n
        if spread <= 1e-9 * self._n * max(self._xx, 1.0):  # all of one size: no line, a rate
            return 0.0, max(self._y / max(self._x, 1.0), 1e-9)
        slope = (self._n * self._xy - self._x * self._y) / spread
        overhead = mean - slope * self._x / self._n
        if slope <= 0:  # noise: larger ones were not slower
            return mean, 1e-9
        if overhead < 0:  # it cannot be: the line through the origin that fits best
            return 0.0, self._xy / self._xx
        return overhead, slope

    def _add(self, tokens: float, seconds: float, weight: float) -> None:
        self._n += weight
        self._x += weight * tokens
        self._y += weight * seconds
        self._xx += weight * tokens * tokens
        self._xy += weight * tokens * seconds
