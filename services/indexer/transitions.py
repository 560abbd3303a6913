"""The state machines of runs and nodes: the only place that names a next state."""

from __future__ import annotations

from enum import StrEnum


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


class NodeStatus(StrEnum):
    """Where a node is on its way to a vector."""

    PENDING = "pending"
    PROCESSING = "processing"
    EMBEDDED = "embedded"
    FAILED = "failed"


_FINISHING = frozenset(
    {
        RunState.CANCELLED,
        RunState.SUCCEEDED,
        RunState.SUCCEEDED_WITH_WARNINGS,
        RunState.FAILED,
        RunState.STALE,
    }
)

RUN_TRANSITIONS: dict[RunState, frozenset[RunState]] = {
    RunState.QUEUED: frozenset(
        {RunState.RUNNING, RunState.PAUSED, RunState.CANCELLED, RunState.STALE}
    ),
    RunState.RUNNING: frozenset(
        {RunState.RUNNING, RunState.QUEUED, RunState.PAUSING, RunState.CANCELLING, *_FINISHING}
    ),
    RunState.PAUSING: frozenset(
        {RunState.PAUSED, RunState.RUNNING, RunState.CANCELLING, *_FINISHING}
    ),
    RunState.PAUSED: frozenset({RunState.QUEUED, RunState.CANCELLED}),
    RunState.CANCELLING: frozenset({RunState.CANCELLING, *_FINISHING}),
    **{state: frozenset() for state in _FINISHING},
}
"""What may follow each state. A state that follows itself is a take-over by another replica."""

NODE_TRANSITIONS: dict[NodeStatus, frozenset[NodeStatus]] = {
    NodeStatus.PENDING: frozenset({NodeStatus.PROCESSING, NodeStatus.EMBEDDED}),
    NodeStatus.PROCESSING: frozenset({NodeStatus.EMBEDDED, NodeStatus.FAILED, NodeStatus.PENDING}),
    NodeStatus.EMBEDDED: frozenset({NodeStatus.PENDING}),
    NodeStatus.FAILED: frozenset({NodeStatus.PENDING}),
}
"""`pending -> embedded` is a vector from the cache; back to pending is a new model or a retry."""

FINISHED_RUN_STATES = _FINISHING
OWNED_RUN_STATES = frozenset({RunState.RUNNING, RunState.PAUSING, RunState.CANCELLING})


def decide_final_state(
    *,
    cancel_requested: bool,
    abandoned: bool = False,
    stopped_by_failure: bool,
    nodes_left: int,
    nodes_failed: int,
    files_failed: int,
    warnings: int,
) -> RunState:
    """Returns how a run that came to its end is to be called, from what the database holds.

    Cancelled means that it was asked for before the end, whatever else happened; stale, that its
    owners stopped again and again; failed, that the run could not go on. A single file or node that
    failed, or nodes that are left over, as the data drifted, make no failed run, but no plain
    success either.
    """
    if cancel_requested:
        return RunState.CANCELLED
    if abandoned:
        return RunState.STALE
    if stopped_by_failure:
        return RunState.FAILED
    if nodes_left or nodes_failed or files_failed or warnings:
        return RunState.SUCCEEDED_WITH_WARNINGS
    return RunState.SUCCEEDED
