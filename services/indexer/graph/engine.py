"""Answers what lies around nodes in the code graph."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.indexer import metrics
from services.indexer.graph.walk import GraphWalk
from services.runtime.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from services.indexer.graph.model import Edge, GraphNode, WalkSpec
    from services.indexer.graph.walk import View
    from services.indexer.model import NodeId, Workspace
    from services.indexer.search.model import Hit
    from services.indexer.storage.graph import GraphStore

MOST_OF_A_SYMBOL = 20
"""Most definitions that one symbol starts from."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Nodes by their distance, nearest first, and the edges between them and the starts."""

    starts: tuple[NodeId, ...]
    distances: dict[NodeId, int]
    edges: list[Edge]
    truncated: bool = False

    def page(self, size: int) -> tuple[Surroundings, Surroundings]:
        """Returns the next nodes with the edges that lead to them, and what is left."""
        order = list(self.distances)
        later = set(order[size:])
        edges = [edge for edge in self.edges if not later & {edge.source, edge.target}]
        rest = [edge for edge in self.edges if later & {edge.source, edge.target}]
        return (
            Surroundings(
                self.starts,
                {node: self.distances[node] for node in order[:size]},
                edges,
                self.truncated,
            ),
            Surroundings(
                (), {node: self.distances[node] for node in order[size:]}, rest, self.truncated
            ),
        )


class GraphEngine:
    """Walks the graph of a workspace."""

    def __init__(self, store: GraphStore) -> None:
        self._store = store

    async def around(
        self,
        workspace: Workspace,
        spec: WalkSpec,
        *,
        node_ids: Sequence[NodeId] = (),
        symbols: Sequence[str] = (),
    ) -> Surroundings:
        """Returns what lies around nodes, and around definitions of these names.

        Raises:
            NotFoundError: there is no such node, or nothing of that name.
        """
        async with self._store.view(workspace.id) as view:
            found = await view.nodes(node_ids)
            _check_all_found(workspace, node_ids, found)
            starts = {found[node].id: found[node] for node in node_ids}
            named = await view.symbols(symbols, MOST_OF_A_SYMBOL) if symbols else []
            _check_all_named(workspace, symbols, named)
            starts.update((node.id, node) for node in named)
            return await _walk(view, spec, list(starts.values()))

    async def around_hits(
        self, workspace: Workspace, spec: WalkSpec, hits: Sequence[Hit]
    ) -> Surroundings:
        """Returns what lies around hits; one that is gone by now has nothing around it."""
        async with self._store.view(workspace.id) as view:
            found = await view.nodes([hit.node_id for hit in hits])
            return await _walk(view, spec, list(dict.fromkeys(found.values())))

    async def shown(self, workspace: Workspace, distances: dict[NodeId, int]) -> list[Hit]:
        """Returns nodes in order of distance, scored by it; those that are gone are left out."""
        scores = {node: 1 / distance for node, distance in distances.items()}
        return await self._store.shown(workspace.id, workspace.name, scores)


async def _walk(view: View, spec: WalkSpec, starts: Sequence[GraphNode]) -> Surroundings:
    started = time.perf_counter()
    walked = await GraphWalk(view, spec).from_nodes(starts)
    metrics.SEARCH_SECONDS.labels("graph").observe(time.perf_counter() - started)
    return Surroundings(
        tuple(node.id for node in starts), walked.distances, walked.edges, walked.truncated
    )


def _check_all_found(
    workspace: Workspace, node_ids: Sequence[NodeId], found: Iterable[NodeId]
) -> None:
    missing = [node for node in node_ids if node not in set(found)]
    if missing:
        raise NotFoundError(
            f"Workspace {workspace.name} has no node {missing[0]}.",
            metadata={"resource": f"workspaces/{workspace.name}/nodes/{missing[0]}"},
        )


def _check_all_named(
    workspace: Workspace, symbols: Sequence[str], found: Sequence[GraphNode]
) -> None:
    for symbol in symbols:
        if not any(f".{node.qualified_name}".endswith(f".{symbol}") for node in found):
            raise NotFoundError(
                f"Workspace {workspace.name} has no class, function or method of this name.",
                metadata={"resource": f"workspaces/{workspace.name}"},
            )
