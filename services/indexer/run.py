"""A run, and how what it covers ended in it: plain data, no I/O."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from uuid import UUID

    from services.indexer.model import Failure, ModelId, WorkspaceId
    from services.indexer.run_spec import RunPhase, RunPriority, RunTrigger
    from services.indexer.transitions import RunState


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
    REMOVED = "removed"
    FAILED = "failed"
    TIMEOUT = "timeout"
    STALE = "stale"


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

    def __add__(self, other: RunCounters) -> RunCounters:
        """Returns what both add together."""
        return RunCounters(*map(sum, zip(astuple(self), astuple(other), strict=True)))


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
    nodes_embedded: int = 0
    """Of a file: its nodes at the end of the run, by what became of them."""
    nodes_reused: int = 0
    nodes_failed: int = 0
    nodes_pending: int = 0


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
    trigger: RunTrigger
    changed_at: datetime | None
    """When the oldest change was seen that a watcher's run is for, by the database's clock."""
    model_id: ModelId | None
    """The model that it embeds with, where that is not the active one."""
    model_name: str
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
    traceparent: str
    """The trace of the call that asked for it; empty when nobody's call did."""
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
    def trace_id(self) -> str:
        """The trace of the call that asked for it; empty when nobody's call did."""
        return self.traceparent.split("-")[1] if self.traceparent else ""

    @property
    def is_scoped(self) -> bool:
        """Whether it covers named files and nodes alone."""
        return self.mode in {RunMode.SCOPED, RunMode.REPAIR}
