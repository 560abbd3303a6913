"""The words of the code graph: plain data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, NamedTuple

from services.indexer.model import FileId, NodeId, NodeKind

if TYPE_CHECKING:
    from services.indexer.model import ReferenceKind

MAX_DEPTH = 5
MAX_NODES = 2000
"""Most nodes that one walk finds."""
MAX_USES = 5000
"""Most names that one step of a walk looks up."""
MAX_SAME_NAME = 500
"""Most definitions of one name that are looked at, and most aliases of the names of one step."""
MAX_SAME_PLACE = 200
"""Most files of one stem or folder that are looked at."""
MAX_IMPORTS = 1000
"""Most imports of one file that are looked at."""
MAX_MEMBERS = 1000
"""Most nodes of one container that are told."""
MAX_GUESSES = 5
"""Most definitions that are told of a name that may mean each of them."""


class EdgeKind(StrEnum):
    """How a node relates to another; the order is that in which edges are told."""

    CONTAINS = "contains"
    IMPORTS = "imports"
    CALLS = "calls"
    INHERITS = "inherits"
    TESTS = "tests"


class Direction(StrEnum):
    """Which way edges are followed."""

    BOTH = "both"
    OUT = "out"
    IN = "in"


class Resolution(IntEnum):
    """How sure it is what a name means, surest first; 0 is no name."""

    SYNTAX = 0
    LOCAL = 1
    IMPORTED = 2
    NEIGHBOUR = 3
    UNIQUE = 4
    AMBIGUOUS = 5


@dataclass(frozen=True, slots=True)
class WalkSpec:
    """What a walk follows, how far, and how many nodes it finds at most."""

    edges: frozenset[EdgeKind] = frozenset(EdgeKind)
    direction: Direction = Direction.BOTH
    depth: int = 1
    max_nodes: int = MAX_NODES

    def goes_out(self, kind: EdgeKind) -> bool:
        """Tells whether edges of a kind are followed from their first node."""
        return kind in self.edges and self.direction is not Direction.IN

    def goes_in(self, kind: EdgeKind) -> bool:
        """Tells whether edges of a kind are followed to their first node."""
        return kind in self.edges and self.direction is not Direction.OUT


class GraphNode(NamedTuple):
    """A node as the graph knows it; of a split one the first part."""

    id: NodeId
    file_id: FileId
    path: str
    language: str
    kind: NodeKind
    qualified_name: str
    parent_id: NodeId | None
    ordinal: int

    @property
    def name(self) -> str:
        """The last part of its name."""
        return self.qualified_name.rpartition(".")[2]

    @property
    def scope(self) -> str:
        """The name of what it is in; empty at the top of a file."""
        return self.qualified_name.rpartition(".")[0]

    @property
    def is_definition(self) -> bool:
        """Whether names can mean it."""
        return self.kind in DEFINITIONS


class Import(NamedTuple):
    """What a file imports: `name` of `module`, as `alias`; see `lodestone.io.v1.Reference`."""

    module: str
    name: str
    alias: str


class SourceFile(NamedTuple):
    """A file that a module's name may mean."""

    id: FileId
    path: str


class Use(NamedTuple):
    """A name in a node."""

    owner: GraphNode
    kind: ReferenceKind
    name: str
    qualifier: str
    alias: str
    line: int


class Target(NamedTuple):
    """What a name means."""

    node: GraphNode
    resolution: Resolution


class Edge(NamedTuple):
    """A relation between two nodes; the line is that of the name, 0 for none."""

    source: NodeId
    target: NodeId
    kind: EdgeKind
    resolution: Resolution
    line: int


DEFINITIONS = frozenset({NodeKind.CLASS, NodeKind.FUNCTION, NodeKind.METHOD})
