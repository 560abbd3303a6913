"""Fuses the arms of a search and applies what is known of code beside its text."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from services.indexer.model import Hit, NodeId, NodeKind
from services.indexer.search.terms import query_terms

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_TEST_PATH = re.compile(
    r"(^|/)(tests?|testing|__tests__|spec)(/|$)|(^|/)(test_|conftest)|[._]test\."
)
_TEST_WORDS = frozenset({"test", "tests", "testing", "spec", "fixture"})


@dataclass(frozen=True, slots=True)
class Ranking:
    """Weights of arms and priors."""

    rank_offset: float = 60.0
    """The constant of reciprocal rank fusion (Cormack, Clarke and Büttcher, 2009)."""

    dense_weight: float = 1.0
    lexical_weight: float = 1.0

    name_factor: float = 1.6
    """For a node whose own name is a term of the question."""

    outline_factor: float = 0.9
    """For windows, blocks and module headers: definitions come first."""

    test_factor: float = 0.7
    """For files of tests, unless the question speaks of tests."""

    same_file_factor: float = 0.85
    """For each better hit in the same file."""


def fuse(
    ranking: Ranking, dense: Sequence[NodeId], lexical: Sequence[NodeId]
) -> dict[NodeId, float]:
    """Returns a score for every node that an arm found, each arm's best first."""
    scores: dict[NodeId, float] = defaultdict(float)
    for weight, arm in ((ranking.dense_weight, dense), (ranking.lexical_weight, lexical)):
        for place, node in enumerate(arm, start=1):
            scores[node] += weight / (ranking.rank_offset + place)
    return dict(scores)


def rank(ranking: Ranking, query: str, hits: Iterable[Hit]) -> list[Hit]:
    """Returns hits best first, their score changed by the priors; equal ones by path and place."""
    terms = set(query_terms(query))
    wants_tests = bool(terms & _TEST_WORDS)
    scored = [
        replace(hit, score=hit.score * _prior(ranking, hit, terms, wants_tests=wants_tests))
        for hit in hits
    ]
    seen: dict[str, int] = defaultdict(int)
    spread = []
    for hit in sorted(scored, key=_order):
        spread.append(replace(hit, score=hit.score * ranking.same_file_factor ** seen[hit.path]))
        seen[hit.path] += 1
    return sorted(spread, key=_order)


def _prior(ranking: Ranking, hit: Hit, terms: set[str], *, wants_tests: bool) -> float:
    factor = 1.0
    own_name = hit.qualified_name.rpartition(".")[2].lower()
    if own_name and own_name in terms:
        factor *= ranking.name_factor
    if hit.kind in {NodeKind.WINDOW, NodeKind.BLOCK, NodeKind.MODULE}:
        factor *= ranking.outline_factor
    if not wants_tests and _TEST_PATH.search(hit.path):
        factor *= ranking.test_factor
    return factor


def _order(hit: Hit) -> tuple[float, str, int]:
    return -hit.score, hit.path, hit.start_byte
