"""Tells how the scores of hits came about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.indexer.search.blending import rerank_places
from services.indexer.search.ranking import Parts
from services.runtime.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from services.indexer.model import NodeId, Workspace
    from services.indexer.search.engine import SearchEngine, SearchTrace
    from services.indexer.search.model import Hit, SearchFilter
    from services.indexer.search.reranking import RerankOutcome
    from services.indexer.storage.search import Scored
    from services.indexer.storage.truth import Origin, TruthStore
    from services.indexer.storage.workspaces import WorkspaceStore


_NO_PARTS = Parts(0.0, 1.0, 0.0)
"""Of a node that no arm found."""


@dataclass(frozen=True, slots=True)
class ArmPlace:
    """Where an arm of a search has a node: place from 1, or 0 with score 0 when it is not there."""

    arm: str
    place: int
    score: float


@dataclass(frozen=True, slots=True)
class RerankPlace:
    """Where the reranker has a node, from 1 among those that it scored, and where it was before."""

    place: int
    score: float
    place_before: int


@dataclass(frozen=True, slots=True)
class Explanation:
    """How a hit's score came about, and where its vector comes from."""

    hit: Hit
    place: int
    fused_score: float
    """Score before the priors: what it is worth in its file by `parts`, times `pooling_factor`."""
    parts: Parts
    arms: tuple[ArmPlace, ...]
    priors: Mapping[str, float]
    origin: Origin
    fingerprint: str
    reranking: RerankOutcome
    rerank: RerankPlace | None
    """None where the reranker did not score it."""

    @property
    def pooling_factor(self) -> float:
        """What the nodes of the file say together, as a factor of what its best one is worth."""
        return self.fused_score / self.parts.worth if self.parts.worth else 1.0


class Explainer:
    """Tells what a search did with nodes."""

    def __init__(self, engine: SearchEngine, store: TruthStore, workspaces: WorkspaceStore) -> None:
        self._engine = engine
        self._store = store
        self._workspaces = workspaces

    async def explain(
        self,
        workspaces: Sequence[Workspace],
        query: str,
        only: SearchFilter,
        node: NodeId,
        *,
        rerank: bool | None = None,
        at_least: int = 0,
    ) -> Explanation:
        """Searches, and returns how it ranks a node, also one that it does not find.

        What is told is of a search of these arguments: see `SearchEngine.trace`.

        Raises:
            NotFoundError: there is no such node, or it has no vector yet.
            StateConflictError: a workspace was never indexed, or they have different models.
        """
        trace = await self._engine.trace(workspaces, query, only, rerank=rerank, at_least=at_least)
        told = await self.explain_trace(workspaces, query, trace, [node])
        if not told:
            name = workspaces[0].name
            raise NotFoundError(
                f"Workspace {name} has no embedded node {node}.",
                metadata={"resource": f"workspaces/{name}/nodes/{node}"},
            )
        return told[0]

    async def explain_trace(
        self,
        workspaces: Sequence[Workspace],
        query: str,
        trace: SearchTrace,
        nodes: Sequence[NodeId],
    ) -> list[Explanation]:
        """Returns how a search ranked nodes, in their order; those that are gone are left out."""
        places = {hit.node_id: place for place, hit in enumerate(trace.hits, start=1)}
        known = {node: trace.hits[places[node] - 1] for node in nodes if node in places}
        if missing := {node: 0.0 for node in nodes if node not in places}:
            known |= {hit.node_id: hit for hit in await self._engine.hits(workspaces, missing)}
        origins: dict[NodeId, tuple[Origin, str]] = {}
        for workspace in workspaces:
            own = [node for node, hit in known.items() if hit.workspace_name == workspace.name]
            assert workspace.active_model_id is not None
            model = await self._workspaces.model(workspace.active_model_id)
            for node, origin in (await self._store.origins(workspace.id, own)).items():
                origins[node] = origin, model.fingerprint
        arms = {name: _places(arm) for name, arm in trace.arms.items()}
        reranked = _rerank_places(trace)
        parts = self._engine.parts(query, trace)
        return [
            Explanation(
                known[node],
                places.get(node, 0),
                trace.fused.get(node, 0.0),
                parts.get(node, _NO_PARTS),
                tuple(ArmPlace(name, *arm.get(node, (0, 0.0))) for name, arm in arms.items()),
                trace.factors.get(node) or self._engine.priors(query, known[node]),
                *origins[node],
                trace.reranked.outcome,
                reranked.get(node),
            )
            for node in nodes
            if node in origins
        ]


def _rerank_places(trace: SearchTrace) -> dict[NodeId, RerankPlace]:
    """Returns where the reranker has the nodes that it scored."""
    scores = trace.reranked.scores
    before = {hit.node_id: place for place, hit in enumerate(trace.before, start=1)}
    places = rerank_places(trace.before, scores) if scores else {}
    return {node: RerankPlace(places[node], score, before[node]) for node, score in scores.items()}


def _places(arm: Sequence[Scored]) -> dict[NodeId, tuple[int, float]]:
    """Returns place from 1 and score by node."""
    return {item.node_id: (place, item.score) for place, item in enumerate(arm, start=1)}
