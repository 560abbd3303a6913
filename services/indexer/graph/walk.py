"""Walks the code graph from some nodes: step by step, in one order, within limits."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from services.indexer.graph.facts import Facts
from services.indexer.graph.model import (
    MAX_MEMBERS,
    MAX_SAME_NAME,
    MAX_USES,
    Edge,
    EdgeKind,
    GraphNode,
    Resolution,
    WalkSpec,
)
from services.indexer.graph.modules import module_ends, module_path
from services.indexer.graph.resolver import Resolver
from services.indexer.model import NodeId, ReferenceKind
from services.indexer.search.places import read_place

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from services.indexer.graph.model import Target, Use

MAX_NAMES = 500
"""Most names whose uses one step looks for."""
MOST_ROUNDS = 20
"""Most times that names are tried again with more facts; re-exports and bases take some."""

_REFERENCES = {
    EdgeKind.CALLS: ReferenceKind.CALL,
    EdgeKind.INHERITS: ReferenceKind.INHERIT,
    EdgeKind.IMPORTS: ReferenceKind.IMPORT,
}
_KINDS = {reference: kind for kind, reference in _REFERENCES.items()}


class View(Protocol):
    """What a walk reads; see `storage.graph.GraphView`."""

    async def nodes(self, ids: Sequence[NodeId]) -> dict[NodeId, GraphNode]: ...
    async def uses(self, nodes: Sequence[NodeId], kinds: Sequence[ReferenceKind]) -> list[Use]: ...
    async def aliases(self, names: Sequence[str]) -> list[str]: ...
    async def users(
        self, names: Sequence[str], kinds: Sequence[ReferenceKind], most: int
    ) -> list[Use]: ...
    async def importers(self, stems: Sequence[str]) -> list[Use]: ...
    async def members(self, nodes: Sequence[NodeId]) -> dict[NodeId, list[GraphNode]]: ...
    async def fill(self, facts: Facts) -> bool: ...


@dataclass
class Walked:
    """What a walk found: nodes with their distance, nearest first, and the edges between all."""

    starts: list[GraphNode]
    distances: dict[NodeId, int] = field(default_factory=dict)
    edges: list[Edge] = field(default_factory=list)
    truncated: bool = False


class GraphWalk:
    """One walk over one view."""

    def __init__(self, view: View, spec: WalkSpec) -> None:
        self._view = view
        self._spec = spec
        self._facts = Facts()
        self._resolver = Resolver(self._facts)
        self._nodes: dict[NodeId, GraphNode] = {}
        self._edges: dict[tuple[NodeId, NodeId, EdgeKind], Edge] = {}
        self._truncated = False
        """Whether there was too much to go on with."""
        self._left_out = False
        """Whether something was left out of what the walk went on with."""

    async def from_nodes(self, starts: Sequence[GraphNode]) -> Walked:
        """Returns what is found from nodes; in the order of distance, then of path and place."""
        walked = Walked(list(starts))
        self._nodes = {node.id: node for node in starts}
        frontier = list(starts)
        for distance in range(1, self._spec.depth + 1):
            if not frontier or self._truncated:
                break
            found = await self._step(frontier)
            room = self._spec.max_nodes - len(walked.distances)
            self._truncated |= len(found) > room
            frontier = found[:room]
            self._nodes.update((node.id, node) for node in frontier)
            walked.distances.update((node.id, distance) for node in frontier)
        kept = [
            edge for edge in self._edges.values() if {edge.source, edge.target} <= {*self._nodes}
        ]
        walked.edges = sorted(kept, key=lambda edge: (edge.source, edge.target, edge.kind))
        walked.truncated = self._truncated or self._left_out
        return walked

    async def _step(self, frontier: Sequence[GraphNode]) -> list[GraphNode]:
        """Returns the new nodes one edge away, in order."""
        found: dict[NodeId, GraphNode] = {}
        ids = [node.id for node in frontier]
        if self._spec.goes_out(EdgeKind.CONTAINS):
            for container, members in (await self._view.members(ids)).items():
                self._left_out |= len(members) > MAX_MEMBERS
                for member in members[:MAX_MEMBERS]:
                    found[member.id] = member
                    self._add(Edge(container, member.id, EdgeKind.CONTAINS, Resolution.SYNTAX, 0))
        if self._spec.goes_in(EdgeKind.CONTAINS):
            for node in await self._containers(frontier):
                found[node.id] = node
        kinds = [kind for edge, kind in _REFERENCES.items() if self._goes_out(edge)]
        if kinds:
            uses = self._within(await self._view.uses(ids, kinds))
            for use, targets in await self._resolve(uses):
                found.update((node.id, node) for node in self._link(use, targets))
        for use, targets in await self._resolve(self._within(await self._users(frontier))):
            known = [target for target in targets if target.node.id in self._nodes]
            if self._link(use, known):
                found[use.owner.id] = use.owner
        new = [node for node in found.values() if node.id not in self._nodes]
        return sorted(new, key=lambda node: (node.path, node.ordinal, node.id))

    def _goes_out(self, kind: EdgeKind) -> bool:
        tests = kind is EdgeKind.CALLS and self._spec.goes_out(EdgeKind.TESTS)
        return self._spec.goes_out(kind) or tests

    async def _containers(self, frontier: Sequence[GraphNode]) -> list[GraphNode]:
        parents = {node.parent_id for node in frontier if node.parent_id is not None}
        nodes = await self._view.nodes(sorted(parents))
        for node in frontier:
            if node.parent_id in nodes:
                container = nodes[node.parent_id].id
                self._add(Edge(container, node.id, EdgeKind.CONTAINS, Resolution.SYNTAX, 0))
        return list(nodes.values())

    async def _users(self, frontier: Sequence[GraphNode]) -> list[Use]:
        """Returns uses of names that may mean one of the nodes."""
        spec = self._spec
        kinds = [kind for edge, kind in _REFERENCES.items() if spec.goes_in(edge)]
        if spec.goes_in(EdgeKind.TESTS) and ReferenceKind.CALL not in kinds:
            kinds.append(ReferenceKind.CALL)
        names = sorted({node.name for node in frontier if node.is_definition})
        uses = []
        if names and kinds:
            self._truncated |= len(names) > MAX_NAMES
            names = names[:MAX_NAMES]
            most = max(MAX_USES // len(names), 1)
            aliases = await self._view.aliases(names)
            self._left_out |= len(aliases) > MAX_SAME_NAME
            wanted = sorted({*names, *aliases[:MAX_SAME_NAME]})
            uses = await self._view.users(wanted, kinds, most + 1)
            counts = Counter(use.name for use in uses)
            self._truncated |= max(counts.values(), default=0) > most
        if spec.goes_in(EdgeKind.IMPORTS):
            uses += await self._importers(frontier)
        return uses

    async def _importers(self, frontier: Sequence[GraphNode]) -> list[Use]:
        """Returns imports that may mean the module of a file, which its first node stands for.

        The module is what is imported of (`from a.b import c`), or what is (`from a import b`).
        """
        firsts = [node for node in frontier if node.ordinal == 0]
        if not firsts:
            return []
        names = sorted({module_path(node.path).rpartition("/")[2] for node in firsts})
        ends = {end for node in firsts for end in module_ends(node.path, node.language)}
        uses = await self._view.importers(sorted(ends))
        most = max(MAX_USES // len(names), 1)
        return uses + await self._view.users(names, [ReferenceKind.IMPORT], most + 1)

    def _within(self, uses: list[Use]) -> list[Use]:
        """Returns as many uses as one step may look up."""
        self._truncated |= len(uses) > MAX_USES
        return uses[:MAX_USES]

    async def _resolve(self, uses: list[Use]) -> list[tuple[Use, list[Target]]]:
        """Returns what names mean; tried again until no fact is missing."""
        for _ in range(MOST_ROUNDS):
            self._facts.begin()
            # Thousands of names take a while, and the event loop serves others.
            targets = await asyncio.to_thread(lambda: [self._resolver.resolve(use) for use in uses])
            if not await self._view.fill(self._facts):
                self._left_out |= self._facts.gave_part
                return list(zip(uses, targets, strict=True))
        self._truncated = True
        return list(zip(uses, targets, strict=True))

    def _link(self, use: Use, targets: Iterable[Target]) -> list[GraphNode]:
        """Adds the edges of a name; returns the nodes that they lead to."""
        kind = self._kind_of(use)
        if kind is None:
            return []
        linked = [target for target in targets if target.node.id != use.owner.id]
        for target in linked:
            self._add(Edge(use.owner.id, target.node.id, kind, target.resolution, use.line))
        return [target.node for target in linked]

    def _kind_of(self, use: Use) -> EdgeKind | None:
        """Returns the kind of a name's edges: a call in a test tests, when that is asked for."""
        kind = _KINDS[use.kind]
        tests = kind is EdgeKind.CALLS and read_place(use.owner.path).is_test
        if tests and EdgeKind.TESTS in self._spec.edges:
            return EdgeKind.TESTS
        return kind if kind in self._spec.edges else None

    def _add(self, edge: Edge) -> None:
        """Adds an edge; of two between the same nodes the surer one stays, then the upper one."""
        key = (edge.source, edge.target, edge.kind)
        known = self._edges.get(key)
        if known is None or (edge.resolution, edge.line) < (known.resolution, known.line):
            self._edges[key] = edge
