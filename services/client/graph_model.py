"""What explanations and walks of the code graph return: plain, frozen data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from services.client.model import Hit, Reranking


class EdgeKind(StrEnum):
    """How a node relates to another."""

    CONTAINS = "contains"
    IMPORTS = "imports"
    CALLS = "calls"
    INHERITS = "inherits"
    TESTS = "tests"
    UNKNOWN = "unknown"
    """A kind that this client does not know; it cannot be asked for."""


class Direction(StrEnum):
    """Which way edges are followed."""

    BOTH = "both"
    OUT = "out"
    """To callees, bases, members, what is imported, what is tested."""
    IN = "in"
    """To callers, subclasses, the enclosing class, importers, tests."""


class Resolution(StrEnum):
    """How sure it is that a name means the node that an edge leads to."""

    SYNTAX = "syntax"
    """Not a name: the edge is of the syntax."""
    LOCAL = "local"
    IMPORTED = "imported"
    NEIGHBOUR = "neighbour"
    UNIQUE = "unique"
    AMBIGUOUS = "ambiguous"
    """One of several definitions of this name."""
    UNKNOWN = "unknown"
    """A resolution that this client does not know."""


@dataclass(frozen=True, slots=True)
class Edge:
    """A relation between two nodes, by their ids."""

    source: int
    target: int
    kind: EdgeKind
    resolution: Resolution
    line: int
    """Line in the source's file on which the name stands, 1-based; 0 when there is none."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """A page of what is around some nodes."""

    nodes: tuple[Hit, ...]
    """Nearest first; the score is 1 over the number of edges to it."""
    edges: tuple[Edge, ...]
    """Those by which the nodes were found."""
    starts: tuple[Hit, ...]
    """The nodes that the walk started from, on the first page."""
    truncated: bool
    """Whether the walk left something out: it was too large to be finished, or went on with a part
    of what it met, such as a class of more than 1000 members."""
    next_page_token: str
    """For the next call; empty at the end."""

    def reached(self, kind: EdgeKind, direction: Direction = Direction.BOTH) -> tuple[Hit, ...]:
        """Returns the nodes that an edge of a kind leads to, the nearest first.

        `CALLS` and `IN` are the callers, `CALLS` and `OUT` the callees, `CONTAINS` and `IN` the
        enclosing class, `TESTS` and `IN` the tests. Where a walk follows both, a call by a test is
        among the tests alone.
        """
        ids: set[int] = set()
        for edge in self.edges:
            if edge.kind is kind and direction is not Direction.IN:
                ids.add(edge.target)
            if edge.kind is kind and direction is not Direction.OUT:
                ids.add(edge.source)
        return tuple(node for node in self.nodes if node.node_id in ids)


@dataclass(frozen=True, slots=True)
class ArmPlace:
    """Where one arm of a search has a hit."""

    arm: str
    """`dense`, `lexical`, `named`."""
    rank: int
    """From 1; 0 when the arm did not find it."""
    score: float
    """The arm's own."""


@dataclass(frozen=True, slots=True)
class RerankPlace:
    """Where the reranker has a hit."""

    rank: int
    """From 1, among those that it scored."""
    score: float
    """The reranker's own."""
    rank_before: int
    """Place among all hits before reranking, from 1."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """How a hit's score came about, and where its vector comes from."""

    hit: Hit
    """Without its text; its score is 0 when no arm found it."""
    rank: int
    """Place among the hits, from 1; 0 when no arm found it."""
    fused_score: float
    """Before the priors: `arms_score` times `outline_factor`, and `definition` added to it, times
    `pooling_factor`."""
    arms_score: float
    """What the arms together give the node by itself, of 1."""
    outline_factor: float
    """Of a node that outlines or is a window of a file; 1 for others."""
    definition: float
    """What is added where the node is the definition of a name in the query."""
    pooling_factor: float
    """What the nodes of the file say together, over its best one alone: equal for all its hits, but
    1 for one to which the arms and its name give nothing."""
    priors: Mapping[str, float]
    """Factors by name: the score is their product with the fused one, unless it was reranked."""
    arms: tuple[ArmPlace, ...]
    index_run: str
    """The run that embedded it; empty when its vector came from the cache."""
    model_fingerprint: str
    age_seconds: float
    """Since it was indexed."""
    reranking: Reranking
    rerank: RerankPlace | None
    """None where the reranker did not score it."""
