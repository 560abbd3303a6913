"""What a run is asked to be: plain data, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING

from services.indexer.run import RunMode

if TYPE_CHECKING:
    from services.indexer.model import ModelId
    from services.indexer.run import Run
    from services.indexer.transitions import RunState


MODEL_REPLACED = "Everything is embedded again: "
"""Begins the warning of a run that put another model in the place of one; it stays when another
owner takes the run."""


class RunPhase(StrEnum):
    """What a run does at the moment."""

    QUEUED = "queued"
    SCAN = "scan"
    PARSE = "parse"
    EMBED = "embed"
    FINISHED = "finished"


class RunPriority(IntEnum):
    """Who goes first: the larger number."""

    BACKGROUND = 1
    NORMAL = 2
    LIVE = 3
    INTERACTIVE = 4


class RunTrigger(StrEnum):
    """Why a run was made."""

    CALLER = "caller"
    CHANGES = "changes"
    """A watcher's, over what changed."""
    RECONCILE = "reconcile"
    """A watcher's, over the whole tree: events were lost, were too many, or it was time."""


class IfRunning(StrEnum):
    """What happens to a new run while another of its workspace is not finished."""

    JOIN = "join"
    FAIL = "fail"
    QUEUE = "queue"


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What a caller asks for."""

    mode: RunMode = RunMode.INCREMENTAL
    exclude: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    node_ids: tuple[int, ...] = ()
    priority: RunPriority = RunPriority.NORMAL
    trigger: RunTrigger = RunTrigger.CALLER
    change_age_seconds: float | None = None
    """How long ago the oldest change was seen that the run is for; None for no change."""
    model: str = ""
    """Name of the model that it is to embed with, which is looked up when the run is made."""
    model_id: ModelId | None = None
    """A model beside the active one, for a run that embeds with it alone."""


@dataclass(frozen=True, slots=True)
class RunWishes:
    """What the owner of a run learns when it beats."""

    state: RunState
    cancel: bool
    give_way: bool
    """Whether a run of a higher priority waits for this one's workspace."""


_COVERED_BY = {
    RunMode.FULL: {RunMode.FULL},
    RunMode.INCREMENTAL: {RunMode.INCREMENTAL, RunMode.FULL},
    RunMode.SCOPED: {RunMode.SCOPED},
    RunMode.REPAIR: {RunMode.REPAIR},
    RunMode.EMBED_ONLY: {RunMode.EMBED_ONLY, RunMode.INCREMENTAL, RunMode.FULL},
}


def covers(run: Run, spec: RunSpec) -> bool:
    """Tells whether an unfinished run does what is asked for, so that a caller may join it.

    It has a mode that does as much, and leaves out the same files. A full run stands for an
    incremental one until its scan is over. A scoped run stands for another until a worker takes it,
    when it names all of that one's paths; whether it was given the nodes is not looked at here.
    """
    if run.mode not in _COVERED_BY[spec.mode]:
        return False
    if spec.mode is RunMode.EMBED_ONLY:
        return True
    if set(run.exclude) != set(spec.exclude):
        return False
    if spec.mode is RunMode.SCOPED:
        return run.started_at is None and set(spec.paths) <= set(run.paths)
    return run.mode is spec.mode or not run.scan_finished
