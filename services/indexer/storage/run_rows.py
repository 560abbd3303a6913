"""Rows of the ledger as plain data."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from services.indexer.model import Failure, ModelId, WorkspaceId
from services.indexer.run import Outcome, OutcomeResult, Run, RunCounters, RunMode
from services.indexer.run_spec import RunPhase, RunPriority, RunTrigger
from services.indexer.transitions import OWNED_RUN_STATES, RunState

if TYPE_CHECKING:
    import asyncpg

SELECT_RUNS = (
    "SELECT r.*, w.name AS workspace_name, "
    "coalesce((SELECT m.name FROM models m WHERE m.id = r.model_id), '') AS model_name "
    "FROM runs r JOIN workspaces w ON w.id = r.workspace_id"
)
OWNED_STATES = ", ".join(f"'{state}'" for state in sorted(OWNED_RUN_STATES))
COUNTERS = tuple(field.name for field in dataclasses.fields(RunCounters))

_LONGEST_REST_SECONDS = 30

NODE_COUNTS = ("nodes_embedded", "nodes_reused", "nodes_failed", "nodes_pending")
"""Columns of a file's outcome that count its nodes."""

HELD = f"workspace_id = $1 AND id = $2 AND fence = $3 AND state IN ({OWNED_STATES})"
"""Holds for the row of a run while the caller is its owner; `key_of` gives its arguments."""


def held_up(run: str) -> str:
    """Returns what holds for a row of `runs`, by its alias, while a paused run holds it up.

    A paused run holds up those over the whole workspace with the same model, which would do its
    work; scoped ones touch their own files and nodes alone.
    """
    return (
        f"({run}.mode NOT IN ('scoped', 'repair') AND EXISTS (SELECT 1 FROM runs p "
        f"WHERE p.workspace_id = {run}.workspace_id AND p.finished_at IS NULL "
        f"AND p.state = 'paused' AND p.model_id IS NOT DISTINCT FROM {run}.model_id))"
    )


def rests(run: str) -> str:
    """Returns what holds for a row of `runs`, by its alias, while it rests before its next attempt.

    It was taken up before and came to no end: the database may need a while, and whoever takes it
    at once burns all of its attempts in a moment.
    """
    return (
        f"({run}.attempt > 0 AND {run}.updated_at > "
        f"now() - make_interval(secs => least({_LONGEST_REST_SECONDS}, 0.5 * 2 ^ {run}.attempt)))"
    )


def key_of(run: Run) -> tuple[Any, ...]:
    """Returns the arguments of `HELD`."""
    return run.workspace_id, run.id, run.fence


def run_of(row: asyncpg.Record) -> Run:
    """Returns a run from a row of `SELECT_RUNS`."""
    return Run(
        workspace_id=WorkspaceId(row["workspace_id"]),
        workspace_name=row["workspace_name"],
        id=row["id"],
        seq=row["seq"],
        mode=RunMode(row["mode"]),
        priority=RunPriority(row["priority"]),
        exclude=tuple(row["exclude"]),
        paths=tuple(row["paths"]),
        retry_of=row["retry_of"],
        trigger=RunTrigger(row["trigger"]),
        changed_at=row["changed_at"],
        model_id=None if row["model_id"] is None else ModelId(row["model_id"]),
        model_name=row["model_name"],
        state=RunState(row["state"]),
        phase=RunPhase(row["phase"]),
        attempt=row["attempt"],
        fence=row["fence"],
        created_at=row["created_at"],
        started_at=row["started_at"],
        updated_at=row["updated_at"],
        finished_at=row["finished_at"],
        cancel_requested=row["cancel_requested_at"] is not None,
        version=row["version"],
        traceparent=row["traceparent"],
        counters=RunCounters(**{name: row[name] for name in COUNTERS}),
        scan_finished=row["scan_finished"],
        nodes_total_final=row["nodes_total_final"],
        skipped_by_reason=json.loads(row["skipped_by_reason"]),
        stage_seconds=json.loads(row["stage_seconds"]),
        warnings=tuple(row["warnings"]),
        error=_failure(row),
    )


def outcome_of(row: asyncpg.Record) -> Outcome:
    """Returns an outcome from its row."""
    return Outcome(
        entity=row["entity"],
        path=row["path"],
        result=OutcomeResult(row["result"]),
        stage=row["stage"],
        node_id=row["node_id"],
        qualified_name=row["qualified_name"],
        failure=_failure(row),
        attempts=row["attempts"],
        duration_seconds=row["duration_seconds"],
        **{name: row[name] for name in NODE_COUNTS},
    )


def _failure(row: asyncpg.Record) -> Failure | None:
    if row["error_reason"] is None:
        return None
    return Failure(row["error_reason"], row["error_message"] or "")
