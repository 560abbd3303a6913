"""The indexer's words: plain data, no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, NewType

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from uuid import UUID

    from services.indexer.run_spec import RunPhase, RunPriority
    from services.indexer.transitions import RunState

WorkspaceId = NewType("WorkspaceId", int)
FileId = NewType("FileId", int)
NodeId = NewType("NodeId", int)
ModelId = NewType("ModelId", int)

CHANGED_REASONS = frozenset({"ERROR_REASON_CONTENT_CHANGED", "ERROR_REASON_FILE_NOT_FOUND"})
"""Failures of a read that say: the file is not the one that was planned with."""

TRANSIENT_REASONS = CHANGED_REASONS | {
    "ERROR_REASON_CANCELLED",
    "ERROR_REASON_DEPENDENCY_UNAVAILABLE",
    "ERROR_REASON_FILE_UNREADABLE",
    "ERROR_REASON_OVERLOADED",
    "ERROR_REASON_SHUTTING_DOWN",
}
"""Failures that may pass by themselves: the next run tries their nodes again."""


class NodeKind(StrEnum):
    """What a node is."""

    MODULE = "module"
    CLASS = "class"
    FUNCTION = "function"
    METHOD = "method"
    BLOCK = "block"
    SECTION = "section"
    WINDOW = "window"


class RunMode(StrEnum):
    """What a run covers."""

    FULL = "full"
    INCREMENTAL = "incremental"
    SCOPED = "scoped"
    REPAIR = "repair"
    EMBED_ONLY = "embed_only"


class OutcomeResult(StrEnum):
    """How one file or node ended in a run."""

    OK = "ok"
    REUSED = "reused"
    SKIPPED = "skipped"
    FAILED = "failed"
    TIMEOUT = "timeout"
    STALE = "stale"


@dataclass(frozen=True, slots=True)
class Tree:
    """A folder beneath one of io's roots."""

    root: str
    directory: str


@dataclass(frozen=True, slots=True)
class Workspace:
    """A source tree that is kept indexed."""

    id: WorkspaceId
    name: str
    tree: Tree
    display_name: str
    live: bool
    active_model_id: ModelId | None
    active_model_name: str | None
    last_run_id: UUID | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class EmbedModel:
    """A model as the embed service describes it."""

    name: str
    fingerprint: str
    dimensions: int
    max_tokens: int
    max_batch_texts: int
    """Most texts of one request."""


@dataclass(frozen=True, slots=True)
class RegisteredModel:
    """A model with a table of vectors of its own."""

    id: ModelId
    name: str
    fingerprint: str
    dimensions: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Signature:
    """What the file system says of a file; equal and settled means equal content."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    settled: bool = False

    def same_as(self, other: Signature) -> bool:
        """Tells whether both name the same state of a file, `settled` aside."""
        return (
            self.mtime_ns == other.mtime_ns
            and self.size == other.size
            and self.ctime_ns == other.ctime_ns
            and self.inode == other.inode
        )


@dataclass(frozen=True, slots=True)
class KnownFile:
    """A file as the database knows it."""

    id: FileId
    path: str
    signature: Signature
    digest: bytes
    recipe: str


@dataclass(frozen=True, slots=True)
class ParsedNode:
    """A node as io cut it; `parent` is a position in the file's nodes, or None."""

    kind: NodeKind
    qualified_name: str
    parent: int | None
    start_byte: int
    end_byte: int
    start_line: int
    end_line: int
    segments: tuple[int, ...] | None
    content_hash: bytes
    part: int
    part_count: int
    token_estimate: int


@dataclass(frozen=True, slots=True)
class ParsedFile:
    """A file as nodes, or as skipped with a reason."""

    path: str
    digest: bytes
    signature: Signature
    language: str
    line_count: int
    has_syntax_errors: bool
    nodes: tuple[ParsedNode, ...]
    skip_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a file or node failed."""

    reason: str
    message: str
    retryable: bool = False


@dataclass(frozen=True, slots=True)
class ParseOutcome:
    """How the parsing of one file ended: exactly one of the fields after `path` is set."""

    path: str
    parsed: ParsedFile | None = None
    unchanged: Signature | None = None
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class StoredNode:
    """What matching needs of a node that the database holds."""

    id: NodeId
    kind: NodeKind
    qualified_name: str
    part: int
    content_hash: bytes


@dataclass(frozen=True, slots=True)
class ClaimedNode:
    """A node that this process has a lease on, with what is needed to read its text."""

    id: NodeId
    fence: int
    attempt: int
    content_hash: bytes
    path: str
    digest: bytes
    qualified_name: str
    ranges: tuple[int, ...]
    """Start and end of each piece, in turn."""


@dataclass(frozen=True, slots=True)
class EmbeddedContent:
    """A text that became a vector: little-endian float16, and its terms."""

    content_hash: bytes
    vector: bytes
    token_count: int
    truncated: bool
    terms: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class ScanSummary:
    """Counts of a finished scan."""

    files: int
    skipped: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class RunCounters:
    """What a run adds to its row in one transaction."""

    files_scanned: int = 0
    files_skipped: int = 0
    files_failed: int = 0
    files_to_parse: int = 0
    files_parsed: int = 0
    nodes_total: int = 0
    nodes_pending: int = 0
    nodes_embedded: int = 0
    nodes_reused: int = 0
    nodes_failed: int = 0
    nodes_removed: int = 0
    forwards: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one file or node ended, for the ledger."""

    entity: str
    path: str
    result: OutcomeResult
    stage: str
    node_id: int = 0
    qualified_name: str = ""
    failure: Failure | None = None
    attempts: int = 1
    duration_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Run:
    """A run's row."""

    workspace_id: WorkspaceId
    workspace_name: str
    id: UUID
    seq: int
    mode: RunMode
    priority: RunPriority
    exclude: tuple[str, ...]
    paths: tuple[str, ...]
    """Paths and globs of a scoped run."""
    retry_of: UUID | None
    state: RunState
    phase: RunPhase
    attempt: int
    fence: int
    created_at: datetime
    started_at: datetime | None
    updated_at: datetime
    finished_at: datetime | None
    cancel_requested: bool
    version: int
    counters: RunCounters
    scan_finished: bool
    nodes_total_final: bool
    skipped_by_reason: Mapping[str, int]
    stage_seconds: Mapping[str, float]
    warnings: tuple[str, ...]
    error: Failure | None

    @property
    def name(self) -> str:
        """Resource name."""
        return f"workspaces/{self.workspace_name}/indexRuns/{self.id}"

    @property
    def is_scoped(self) -> bool:
        """Whether it covers named files and nodes alone."""
        return self.mode in {RunMode.SCOPED, RunMode.REPAIR}


@dataclass(frozen=True, slots=True)
class Hit:
    """A node that a search found."""

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


@dataclass(frozen=True, slots=True)
class SearchFilter:
    """What is searched; empty fields take all."""

    languages: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    paths: tuple[str, ...] = field(default=())
    symbols: tuple[str, ...] = ()
