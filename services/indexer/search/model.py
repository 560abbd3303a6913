"""What is searched and what is found: plain data, no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from services.indexer.model import CHANGED_REASONS, Failure

if TYPE_CHECKING:
    from datetime import datetime

    from services.indexer.model import NodeId, NodeKind

_GONE = "ERROR_REASON_FILE_NOT_FOUND"


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

    @classmethod
    def of(cls, read: str | Failure) -> Freshness:
        """Returns what a read of a hit's range tells; a failure may tell nothing of the file."""
        if isinstance(read, str):
            return cls.FRESH
        if read.reason == _GONE:
            return cls.GONE
        return cls.CHANGED if read.reason in CHANGED_REASONS else cls.UNKNOWN


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
