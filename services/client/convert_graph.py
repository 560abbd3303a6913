"""Explanations and the code graph as plain data, and back."""

from __future__ import annotations

from lodestone.indexer.v1 import search_service_pb2
from services.client.convert import hit_of, reranking_of
from services.client.graph_model import (
    ArmPlace,
    Direction,
    Edge,
    EdgeKind,
    Explanation,
    RerankPlace,
    Resolution,
    Surroundings,
)

EDGES = {
    kind: search_service_pb2.EdgeKind.Value(f"EDGE_KIND_{kind.name}")
    for kind in EdgeKind
    if kind is not EdgeKind.UNKNOWN
}
DIRECTIONS = {
    Direction.BOTH: search_service_pb2.EDGE_DIRECTION_UNSPECIFIED,
    Direction.OUT: search_service_pb2.EDGE_DIRECTION_OUT,
    Direction.IN: search_service_pb2.EDGE_DIRECTION_IN,
}
_KINDS = {number: kind for kind, number in EDGES.items()}
_RESOLUTIONS = {
    search_service_pb2.EDGE_RESOLUTION_UNSPECIFIED: Resolution.SYNTAX,
    search_service_pb2.EDGE_RESOLUTION_LOCAL: Resolution.LOCAL,
    search_service_pb2.EDGE_RESOLUTION_IMPORTED: Resolution.IMPORTED,
    search_service_pb2.EDGE_RESOLUTION_NEIGHBOUR: Resolution.NEIGHBOUR,
    search_service_pb2.EDGE_RESOLUTION_UNIQUE: Resolution.UNIQUE,
    search_service_pb2.EDGE_RESOLUTION_AMBIGUOUS: Resolution.AMBIGUOUS,
}


def surroundings_of(message: search_service_pb2.ExpandNodesResponse) -> Surroundings:
    """Returns a page of a walk."""
    return Surroundings(
        nodes=tuple(map(hit_of, message.nodes)),
        edges=tuple(map(_edge_of, message.edges)),
        starts=tuple(map(hit_of, message.starts)),
        truncated=message.truncated,
        next_page_token=message.next_page_token,
    )


def explanation_of(message: search_service_pb2.ExplainHitResponse) -> Explanation:
    """Returns an explanation."""
    rerank = message.rerank
    place = RerankPlace(rerank.rank, rerank.score, rerank.rank_before)
    return Explanation(
        hit=hit_of(message.hit),
        rank=message.rank,
        fused_score=message.fused_score,
        arms_score=message.arms_score,
        outline_factor=message.outline_factor,
        definition=message.definition,
        pooling_factor=message.pooling_factor,
        priors=dict(message.priors),
        arms=tuple(ArmPlace(item.arm, item.rank, item.score) for item in message.arms),
        index_run=message.index_run,
        model_fingerprint=message.model_fingerprint,
        age_seconds=message.age.ToNanoseconds() / 1e9,
        reranking=reranking_of(message.reranking),
        rerank=place if message.HasField("rerank") else None,
    )


def _edge_of(message: search_service_pb2.Edge) -> Edge:
    return Edge(
        source=message.from_node_id,
        target=message.to_node_id,
        kind=_KINDS.get(message.kind, EdgeKind.UNKNOWN),
        resolution=_RESOLUTIONS.get(message.resolution, Resolution.UNKNOWN),
        line=message.line,
    )
