"""The code graph, explanations and checked hits as protobuf."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lodestone.indexer.v1 import search_service_pb2
from services.indexer.convert import duration
from services.indexer.convert_search import FRESHNESS, hit_to_proto
from services.indexer.graph.engine import Surroundings
from services.indexer.graph.model import (
    MAX_DEPTH,
    MAX_NODES,
    Direction,
    Edge,
    EdgeKind,
    Resolution,
    WalkSpec,
)
from services.indexer.model import NodeId
from services.indexer.pages import page_size
from services.indexer.rest_tokens import make_rest_token, read_rest_token
from services.indexer.search.engine import FoundText
from services.indexer.search.reranking import RerankOutcome
from services.runtime.errors import PageTokenError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from services.indexer.search.explain import Explanation
    from services.indexer.search.model import Hit
    from services.indexer.search.truth import Verified

_KINDS = {kind: search_service_pb2.EdgeKind.Value(f"EDGE_KIND_{kind.name}") for kind in EdgeKind}
_BY_NUMBER: dict[int, EdgeKind] = {number: kind for kind, number in _KINDS.items()}
_DIRECTIONS = {
    search_service_pb2.EDGE_DIRECTION_UNSPECIFIED: Direction.BOTH,
    search_service_pb2.EDGE_DIRECTION_OUT: Direction.OUT,
    search_service_pb2.EDGE_DIRECTION_IN: Direction.IN,
}
_RESOLUTIONS = {
    Resolution.SYNTAX: search_service_pb2.EDGE_RESOLUTION_UNSPECIFIED,
    Resolution.LOCAL: search_service_pb2.EDGE_RESOLUTION_LOCAL,
    Resolution.IMPORTED: search_service_pb2.EDGE_RESOLUTION_IMPORTED,
    Resolution.NEIGHBOUR: search_service_pb2.EDGE_RESOLUTION_NEIGHBOUR,
    Resolution.UNIQUE: search_service_pb2.EDGE_RESOLUTION_UNIQUE,
    Resolution.AMBIGUOUS: search_service_pb2.EDGE_RESOLUTION_AMBIGUOUS,
}

_RERANKINGS = {
    RerankOutcome.NONE: search_service_pb2.RERANKING_UNSPECIFIED,
    RerankOutcome.DONE: search_service_pb2.RERANKING_DONE,
    RerankOutcome.TIMED_OUT: search_service_pb2.RERANKING_TIMED_OUT,
    RerankOutcome.UNAVAILABLE: search_service_pb2.RERANKING_UNAVAILABLE,
}


def rerank_of(message: search_service_pb2.SearchNodesRequest) -> bool | None:
    """Returns whether a search is to be reranked; None leaves it to the settings."""
    return message.rerank if message.HasField("rerank") else None


def reranking_to_proto(outcome: RerankOutcome) -> search_service_pb2.Reranking.ValueType:
    """Returns what became of reranking."""
    return _RERANKINGS[outcome]


def walk_of(message: search_service_pb2.ExpandNodesRequest) -> WalkSpec:
    """Returns the walk of a request to expand nodes; its pages cut what it finds."""
    return WalkSpec(
        edges=_edge_kinds(message.edges),
        direction=_DIRECTIONS[message.direction],
        depth=min(message.depth, MAX_DEPTH),
        max_nodes=MAX_NODES,
    )


def walk_of_hits(message: search_service_pb2.ExpandSpec) -> WalkSpec:
    """Returns the walk around the hits of a search."""
    return WalkSpec(
        edges=_edge_kinds(message.edges),
        direction=_DIRECTIONS[message.direction],
        depth=min(message.depth, MAX_DEPTH),
        max_nodes=page_size(message.max_nodes),
    )


def _edge_kinds(
    numbers: Iterable[search_service_pb2.EdgeKind.ValueType],
) -> frozenset[EdgeKind]:
    """Returns the kinds to follow; none named, or one left open, follows all."""
    kinds = {_BY_NUMBER[number] for number in numbers if number in _BY_NUMBER}
    return frozenset(kinds or EdgeKind)


def walk_key(request: search_service_pb2.ExpandNodesRequest) -> tuple[object, ...]:
    """Returns what a page token of a walk belongs to."""
    asked = search_service_pb2.ExpandNodesRequest()
    asked.CopyFrom(request)
    asked.ClearField("page_token")
    asked.ClearField("page_size")
    return ("graph", asked.SerializeToString(deterministic=True).hex())


def rest_token(rest: Surroundings, key: tuple[object, ...]) -> str:
    """Returns the token of the next page of a walk; empty when nothing is left."""
    if not rest.distances:
        return ""
    edges = [
        (edge.source, edge.target, _KINDS[edge.kind], edge.resolution, edge.line)
        for edge in rest.edges
    ]
    return make_rest_token([list(rest.distances.items()), edges, [(int(rest.truncated),)]], *key)


def surroundings_of(token: str, key: tuple[object, ...]) -> Surroundings:
    """Returns what is left of a walk. Raises PageTokenError."""
    nodes, edges, flags = read_rest_token(token, (2, 5, 1), *key)
    try:
        return Surroundings(
            (),
            {NodeId(int(node)): int(distance) or 1 for node, distance in nodes},
            [
                Edge(
                    NodeId(int(source)),
                    NodeId(int(target)),
                    _BY_NUMBER[int(kind)],
                    Resolution(int(resolution)),
                    int(line),
                )
                for source, target, kind, resolution, line in edges
            ],
            any(flag for (flag,) in flags),
        )
    except (KeyError, ValueError):
        raise PageTokenError("The page token is not one of this server's.") from None


def hits_to_proto(hits: Sequence[Hit]) -> list[search_service_pb2.NodeHit]:
    """Returns nodes without their text, which was not looked at."""
    return [_plain(hit) for hit in hits]


def verified_to_proto(
    item: Verified, query: str, *, with_text: bool, signatures: bool = False
) -> search_service_pb2.NodeHit:
    """Returns a hit that was held against its file."""
    found = FoundText(item.hit, item.text if with_text else None, None)
    message = hit_to_proto(found.headed() if signatures else found, query)
    message.freshness = FRESHNESS[item.freshness]
    return message


def _plain(hit: Hit) -> search_service_pb2.NodeHit:
    return hit_to_proto(FoundText(hit, None, None))


def edges_to_proto(surroundings: Surroundings) -> list[search_service_pb2.Edge]:
    """Returns edges as messages."""
    return [_edge(edge) for edge in surroundings.edges]


def _edge(edge: Edge) -> search_service_pb2.Edge:
    return search_service_pb2.Edge(
        from_node_id=edge.source,
        to_node_id=edge.target,
        kind=_KINDS[edge.kind],
        resolution=_RESOLUTIONS[edge.resolution],
        line=edge.line,
    )


def explanation_to_proto(explanation: Explanation) -> search_service_pb2.ExplainHitResponse:
    """Returns an explanation's message."""
    run = explanation.origin.run
    rerank = explanation.rerank
    return search_service_pb2.ExplainHitResponse(
        arms=[
            search_service_pb2.ArmExplanation(arm=item.arm, rank=item.place, score=item.score)
            for item in explanation.arms
        ],
        priors=explanation.priors,
        index_run=f"workspaces/{explanation.hit.workspace_name}/indexRuns/{run}" if run else "",
        model_fingerprint=explanation.fingerprint,
        age=duration(max(0.0, explanation.origin.age_seconds)),
        hit=_plain(explanation.hit),
        rank=explanation.place,
        fused_score=explanation.fused_score,
        arms_score=explanation.parts.arms,
        outline_factor=explanation.parts.outline,
        definition=explanation.parts.definition,
        pooling_factor=explanation.pooling_factor,
        reranking=reranking_to_proto(explanation.reranking),
        rerank=search_service_pb2.RerankExplanation(
            rank=rerank.place, score=rerank.score, rank_before=rerank.place_before
        )
        if rerank is not None
        else None,
    )
