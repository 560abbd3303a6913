"""The indexer's words: plain data, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple, NewType

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from uuid import UUID

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
    active_model: RegisteredModel | None
    """The model that it is searched by; None before the first run."""
    model_chosen: bool
    """Whether somebody chose the active model: no run puts another one in its place."""
    last_run_id: UUID | None
    created_at: datetime
    watch: WatchStatus | None = None
    """How it is watched; None for one that is not live."""

    @property
    def active_model_id(self) -> ModelId | None:
        """The active model's number."""
        return None if self.active_model is None else self.active_model.id

    @property
    def active_model_name(self) -> str | None:
        """The active model's resource name."""
        return None if self.active_model is None else self.active_model.name


class WatchState(StrEnum):
    """How the watch of a live workspace is."""

    WAITING = "waiting"
    """No replica watches it at the moment."""
    WATCHING = "watching"
    UNREACHABLE = "unreachable"
    """The io service does not answer."""
    TREE_MISSING = "tree_missing"


@dataclass(frozen=True, slots=True)
class WatchStatus:
    """What is known of the watch of a live workspace."""

    state: WatchState
    reconciled_at: datetime | None
    fresh_at: datetime | None
    """When the last run over changes ended."""
    freshness_seconds: float | None
    """From the oldest change of that run to its end."""


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
class WorkspaceModel:
    """A model of a workspace, and how far its vectors are."""

    model: RegisteredModel
    active: bool
    created_at: datetime
    nodes_total: int
    nodes_pending: int
    """Those that wait, or are in work."""
    nodes_failed: int
    vector_bytes: int
    """Bytes of its vectors of this workspace on disk, indexes included."""
    nodes_per_second: float
    """Texts a second that went through it in the last run that needed it; 0 when none is known."""

    @property
    def nodes_embedded(self) -> int:
        """Nodes that it has a vector of."""
        return max(0, self.nodes_total - self.nodes_pending - self.nodes_failed)


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


class ReferenceKind(StrEnum):
    """How a node refers to a name."""

    CALL = "call"
    INHERIT = "inherit"
    IMPORT = "import"


class ParsedReference(NamedTuple):
    """A name that a node refers to, as io read it; `node` is a position in the file's nodes."""

    node: int
    kind: ReferenceKind
    name: str
    qualifier: str
    alias: str
    line: int


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
    references: tuple[ParsedReference, ...] = ()


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
