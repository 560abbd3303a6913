"""What calls return: plain, frozen data."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime


class Freshness(StrEnum):
    """Whether the live file still holds what was indexed."""

    UNKNOWN = "unknown"
    """It was not asked."""
    FRESH = "fresh"
    MOVED = "moved"
    CHANGED = "changed"
    GONE = "gone"


class Reranking(StrEnum):
    """What became of reranking the first hits of a search."""

    NONE = "none"
    """It is off, was not asked for, or this is a later page."""
    DONE = "done"
    TIMED_OUT = "timed_out"
    """It took too long: the hits stand as the other arms put them."""
    UNAVAILABLE = "unavailable"
    """There is no reranker, or it does not answer; likewise."""


class RunState(StrEnum):
    """Where a run is in its life."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    SUCCEEDED = "succeeded"
    SUCCEEDED_WITH_WARNINGS = "succeeded_with_warnings"
    FAILED = "failed"
    STALE = "stale"
    UNKNOWN = "unknown"
    """A state that this client does not know."""

    @property
    def is_final(self) -> bool:
        """Tells whether the run has ended."""
        return self in _FINAL

    @property
    def is_success(self) -> bool:
        """Tells whether the index is as the run was to make it."""
        return self in {RunState.SUCCEEDED, RunState.SUCCEEDED_WITH_WARNINGS}


_FINAL = frozenset(
    {
        RunState.CANCELLED,
        RunState.SUCCEEDED,
        RunState.SUCCEEDED_WITH_WARNINGS,
        RunState.FAILED,
        RunState.STALE,
    }
)


@dataclass(frozen=True, slots=True)
class Filter:
    """What is searched; empty fields take all, a set field takes what equals one of its values."""

    paths: tuple[str, ...] = ()
    r"""Globs: `*` stays in a folder, `**` crosses folders, no slash matches names anywhere.

    A slash at the beginning is the top; `\` takes the next sign as it is (`escape_glob`).
    """
    languages: tuple[str, ...] = ()
    """Names such as `python`."""
    kinds: tuple[str, ...] = ()
    """`module`, `class`, `function`, `method`, `block`, `section`, `window`."""
    symbols: tuple[str, ...] = ()
    """Qualified names such as `Router.add_route`."""
    changed_since: str = ""
    """A run's resource name: only what it or a later one put into the index in its present form."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A piece of a file that a search found."""

    workspace: str
    """Resource name, e.g. `workspaces/flask-1a2b3c4d`."""
    node_id: int
    path: str
    kind: str
    name: str
    """Qualified name; empty for what has none."""
    language: str
    start_line: int
    """1-based."""
    end_line: int
    """Inclusive."""
    start_byte: int
    end_byte: int
    """Exclusive."""
    file_digest: bytes
    """BLAKE3-256 of the file when it was indexed."""
    score: float
    """Higher is closer; comparable within one answer alone."""
    text: str = ""
    """Bytes of the range, verified; empty when not asked for or not there any more."""
    freshness: Freshness = Freshness.UNKNOWN
    matches: tuple[tuple[int, int], ...] = ()
    """Where in `text`, in bytes of UTF-8, terms of the query stand."""
    is_signature: bool = False
    """Whether `text` is the head of the range alone."""


@dataclass(frozen=True, slots=True)
class SearchPage:
    """Hits, best first; iterating gives them."""

    hits: tuple[Hit, ...]
    next_page_token: str
    """For the next call; empty at the end."""
    index_run: str
    """The last finished run of what was searched."""
    reranking: Reranking = Reranking.NONE

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def __len__(self) -> int:
        return len(self.hits)


@dataclass(frozen=True, slots=True)
class ContextPiece:
    """A piece of a context."""

    path: str
    start_line: int
    end_line: int
    node_ids: tuple[int, ...]
    signature_only: bool
    workspace: str = ""
    """Resource name; empty from a service that does not tell it."""


@dataclass(frozen=True, slots=True)
class Context:
    """Code for the prompt of a language model."""

    text: str
    tokens: int
    """By estimate; at most the budget."""
    pieces: tuple[ContextPiece, ...]
    hits: tuple[Hit, ...]
    stale: int
    """Hits left out as their files changed since."""
    duplicates: int
    """Hits left out as copies of what is given."""
    over_budget: int
    """Hits left out for want of room."""
    index_run: str
    reranking: Reranking = Reranking.NONE


@dataclass(frozen=True, slots=True)
class FileLines:
    """Lines of a file as it is now."""

    path: str
    text: str
    start_line: int
    end_line: int
    """Inclusive; `start_line - 1` when there are none."""
    line_count: int
    """Lines in the file."""
    file_digest: bytes
    freshness: Freshness
    """`CHANGED` when the file was written since it was indexed."""
    language: str


@dataclass(frozen=True, slots=True)
class Workspace:
    """A source tree that is kept indexed."""

    name: str
    """Resource name, e.g. `workspaces/flask-1a2b3c4d`."""
    root: str
    """Resource name of io's root."""
    directory: str
    """Folder beneath it."""
    display_name: str
    model: str
    """Resource name of the model that search uses; empty before the first run."""
    last_run: str
    """The last finished run; empty when there is none."""


@dataclass(frozen=True, slots=True)
class Run:
    """A piece of work on a workspace."""

    name: str
    state: RunState
    mode: str
    nodes_total: int
    nodes_embedded: int
    nodes_reused: int
    nodes_failed: int
    files_failed: int
    forwards: int
    created_at: datetime | None
    finished_at: datetime | None
    error: str = ""
    warnings: tuple[str, ...] = field(default=())
    trace_id: str = ""
    """Trace of the call that asked for it, which its work continues: 32 hex digits; empty for a run
    that nobody's call asked for."""


@dataclass(frozen=True, slots=True)
class Status:
    """What the index of a workspace holds, and of when."""

    workspace: Workspace
    files: int
    nodes_pending: int
    """Those in work included."""
    nodes_embedded: int
    nodes_failed: int
    last_run: Run | None
    """The last finished one."""
    current_run: Run | None
    """The one that is at work, else the newest that is not finished."""
