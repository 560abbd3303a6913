"""What is searched and what is found: plain data, no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from datetime import datetime

    from services.indexer.model import NodeId, NodeKind


class Hit(NamedTuple):
    """A node that a search found; each search makes hundreds."""

    workspace_name: str
    node_id: NodeId
    path: str
    digest: bytes
    kind: NodeKind
    qualified_name: str
    language: str
    start_byte: int
    end_byte: int
    start_line: int
    end_line: int
    score: float
    part: int = 0
    """0 for the first or only part of what it is a node of."""

    def scored(self, score: float) -> Hit:
        """Returns the hit with a score."""
        return tuple.__new__(Hit, (*self[:11], score, self.part))


class Freshness(StrEnum):
    """Whether the live file still holds a hit."""

    UNKNOWN = "unknown"
    FRESH = "fresh"
    MOVED = "moved"
    CHANGED = "changed"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class SearchFilter:
    """What is searched; empty fields take all."""

    languages: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    paths: tuple[str, ...] = field(default=())
    symbols: tuple[str, ...] = ()
    changed_since: datetime | None = None
    """Only nodes that became part of the index in their present form at this time or later."""


ALL = SearchFilter()
"""Takes all."""
