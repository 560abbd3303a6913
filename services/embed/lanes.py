"""Which lane runs next: by tokens and weight, and by age, so that neither starves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.embed.model import Lane

if TYPE_CHECKING:
    from collections.abc import Mapping


class LaneTurns:
    """Weighted fair queueing over lanes, with virtual time in tokens.

    After Demers, Keshav, Shenker, "Analysis and simulation of a fair queueing algorithm" (1989):
    each lane's clock runs by the tokens that it was given over its weight, and the lane that is
    behind goes next. A lane that comes back from idleness starts at the present, so it saves up no
    credit. Whoever has waited for longer than `max_age_seconds` goes before that.
    """

    def __init__(self, weights: Mapping[Lane, float], *, max_age_seconds: float) -> None:
        self._weights = dict(weights)
        self._max_age_seconds = max_age_seconds
        self._clocks = dict.fromkeys(Lane, 0.0)
        self._present = 0.0

    def choose(self, waiting: Mapping[Lane, float], now: float) -> Lane:
        """Returns the lane to serve.

        Args:
            waiting: for each lane with work, when its oldest batch came.
            now: the time, of the same clock.
        """
        for lane in waiting:
            self._clocks[lane] = max(self._clocks[lane], self._present)
        oldest = min(waiting, key=lambda lane: waiting[lane])
        # By weights the heavier lane never waits long: age is for the lighter one.
        if now - waiting[oldest] > self._max_age_seconds:
            return oldest
        # Ties go to whoever is waited for by a person.
        return min(waiting, key=lambda lane: (self._clocks[lane], lane is not Lane.INTERACTIVE))

    def charge(self, lane: Lane, tokens: int) -> None:
        """Notes that a lane was given a forward of so many tokens."""
        self._present = self._clocks[lane]
        self._clocks[lane] += tokens / self._weights[lane]
