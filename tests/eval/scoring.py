"""Scores of ranked results: NDCG, MRR and recall at 10, and bootstrap intervals of their means."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

AT = 10
_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Target:
    """What a question should find: a file, or some of its lines (1-based, inclusive)."""

    path: str
    start_line: int = 0
    end_line: int = 0
    least_share: float = 0.0
    """Share of a result's lines that must be of these, beyond one."""

    def is_hit_by(self, found: Target) -> bool:
        """Tells whether a result is at this place: paths may lack leading folders."""
        if not _agree(self.path, found.path):
            return False
        if not self.start_line:
            return True
        first = max(found.start_line, self.start_line)
        shared = min(found.end_line, self.end_line) - first + 1
        lines = found.end_line - found.start_line + 1
        return shared > 0 and shared >= self.least_share * lines


@dataclass(frozen=True, slots=True)
class Score:
    """How well one question was answered, each from 0 to 1."""

    ndcg: float
    mrr: float
    recall: float


def score(results: Sequence[Target], targets: Sequence[Target]) -> Score:
    """Returns the scores of the first results.

    Each target is hit once, at the first result that hits it; further results of a hit file gain
    nothing and take up places. NDCG is the gain of the places that hit, 1/log2(place + 1), over
    that of as many leading places as there are targets.
    """
    places = [_place(results[:AT], target) for target in targets]
    hit = {place for place in places if place}
    ideal = sum(map(_gain, range(1, min(AT, len(targets)) + 1)))
    return Score(
        ndcg=sum(map(_gain, hit)) / ideal,
        mrr=max((1 / place for place in hit), default=0.0),
        recall=sum(place > 0 for place in places) / len(targets),
    )


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Returns the 95% bootstrap interval of a mean (percentiles, Efron 1979)."""
    array = np.asarray(values, dtype=float)
    picks = np.random.default_rng(seed).integers(0, len(array), (_RESAMPLES, len(array)))
    low, high = np.percentile(array[picks].mean(axis=1), (2.5, 97.5))
    return float(low), float(high)


def _place(results: Sequence[Target], target: Target) -> int:
    return next((at for at, found in enumerate(results, 1) if target.is_hit_by(found)), 0)


def _gain(place: int) -> float:
    return 1 / math.log2(place + 1)


def _agree(one: str, other: str) -> bool:
    return one == other or one.endswith(f"/{other}") or other.endswith(f"/{one}")
