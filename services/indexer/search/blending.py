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

    def worth(item: tuple[int, Hit]) -> float:
        place, hit = item
        reranked = places.get(hit.node_id, place)
        return share / (smoothing + reranked) + (1 - share) / (smoothing + place)

    ordered = sorted(enumerate(hits, start=1), key=lambda item: (-worth(item), item[0]))
    return [hit._replace(score=taken.score) for (_, hit), taken in zip(ordered, hits, strict=True)]
