"""Blends the order of a search with that of a reranker."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from services.indexer.model import NodeId
    from services.indexer.search.model import Hit

SMOOTHING = 60
"""Added to a place before it is inverted: of Cormack, Clarke, Buettcher, "Reciprocal rank fusion
outperforms Condorcet and individual rank learning methods" (2009)."""


def rerank_places(hits: Sequence[Hit], scores: Mapping[NodeId, float]) -> dict[NodeId, int]:
    """Returns the place, from 1, of each hit that a reranker scored; equal ones stay in order."""
    scored = [hit.node_id for hit in hits if hit.node_id in scores]
    ordered = sorted(scored, key=lambda node: -scores[node])
    return {node: place for place, node in enumerate(ordered, start=1)}


def blended(hits: Sequence[Hit], scores: Mapping[NodeId, float], share: float) -> list[Hit]:
    """Returns hits in their new order, each with the score of the place that it takes.

    A hit is worth `share` of its inverted place by the reranker and the rest of the one it has; one
    that the reranker did not score is worth its place. A share of 0 changes nothing.
    """
    places = rerank_places(hits, scores)

    def worth(item: tuple[int, Hit]) -> float:
        place, hit = item
        reranked = places.get(hit.node_id, place)
        return share / (SMOOTHING + reranked) + (1 - share) / (SMOOTHING + place)

    ordered = sorted(enumerate(hits, start=1), key=lambda item: (-worth(item), item[0]))
    return [hit._replace(score=taken.score) for (_, hit), taken in zip(ordered, hits, strict=True)]
