"""Blends the order of a search with that of a reranker."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from services.indexer.model import NodeId
    from services.indexer.search.model import Hit


def rerank_places(hits: Sequence[Hit], scores: Mapping[NodeId, float]) -> dict[NodeId, int]:
    """Returns the place, from 1, of each hit that a reranker scored; equal ones stay in order."""
    scored = [hit.node_id for hit in hits if hit.node_id in scores]
    ordered = sorted(scored, key=lambda node: -scores[node])
    return {node: place for place, node in enumerate(ordered, start=1)}


def blended(
    hits: Sequence[Hit], scores: Mapping[NodeId, float], share: float, smoothing: float
) -> list[Hit]:
    """Returns hits in their new order, each with the score of the place that it takes.

    A hit is worth `share` of its inverted place by the reranker and the rest of the one it has; one
    that the reranker did not score is worth its place. A share of 0 changes nothing. `smoothing`,
    at least 0, is added to places before they are inverted.
    """
    places = rerank_places(hits, scores)
    reranked = [places.get(hit.node_id, place) for place, hit in enumerate(hits, start=1)]
    order = blended_order(reranked, share, smoothing)
    return [hits[at]._replace(score=taken.score) for at, taken in zip(order, hits, strict=True)]


def blended_order(reranked: Sequence[int], share: float, smoothing: float) -> list[int]:
    """Returns the positions of hits, from 0, the best first.

    Args:
        reranked: the place of each hit by the reranker, from 1; its own where there is none.
        share: of the reranker's order, see `blended`.
        smoothing: see `blended`.
    """

    def worth(at: int) -> float:
        return share / (smoothing + reranked[at]) + (1 - share) / (smoothing + at + 1)

    return sorted(range(len(reranked)), key=lambda at: (-worth(at), at))
