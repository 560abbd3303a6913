"""The end of a run: its state and counts, read from what the tables hold."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from services.indexer.storage.run_scope import NODES
from services.indexer.transitions import (
    FINISHED_RUN_STATES,
    OWNED_RUN_STATES,
    RunState,
    decide_final_state,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import asyncpg

    from services.indexer.model import Failure, Run
    from services.indexer.storage.database import Connection

_RELEASE = """
UPDATE nodes SET status = 'pending', attempt = greatest(attempt - 1, 0),
  lease_owner = NULL, lease_until = NULL, updated_at = now(), status_since = now()
WHERE workspace_id = $1 AND status = 'processing'
"""

_FORGET_ENDED = """
DELETE FROM run_outcomes o WHERE o.workspace_id = $1 AND o.run_id = $2 AND o.entity = 'node'
  AND NOT EXISTS (SELECT 1 FROM nodes n
    WHERE n.workspace_id = $1 AND n.id = o.node_id AND n.status = 'failed')
"""

_LIST_FAILED = """
INSERT INTO run_outcomes (workspace_id, run_id, entity, path, node_id, qualified_name, result,
  stage, error_reason, error_message, attempts)
SELECT $1, $2, 'node', f.path, n.id, n.qualified_name,
  CASE n.error_reason WHEN 'ERROR_REASON_TIMEOUT' THEN 'timeout' ELSE 'failed' END, 'embed',
  n.error_reason,
  n.error_message, n.attempt
FROM {nodes} JOIN files f ON f.workspace_id = n.workspace_id AND f.id = n.file_id
WHERE n.workspace_id = $1 AND n.status = 'failed'
ON CONFLICT DO NOTHING
"""
"""Also what failed in an earlier run and still does: each failed node is listed with its reason."""

_COUNT = """
SELECT count(*) AS total, count(*) FILTER (WHERE status = 'embedded') AS embedded,
  count(*) FILTER (WHERE status = 'embedded' AND embedded_run = $2) AS forwarded,
  count(*) FILTER (WHERE status = 'failed') AS failed,
  (SELECT count(*) FROM run_outcomes
    WHERE workspace_id = $1 AND run_id = $2 AND entity = 'file') AS files_failed
FROM {nodes} WHERE n.workspace_id = $1
"""

_SKIPPED = """
SELECT skip_reason, count(*) AS count FROM files
WHERE workspace_id = $1 AND state = 'skipped' GROUP BY skip_reason
"""

_END = """
UPDATE runs SET state = $3, phase = 'finished', finished_at = now(), updated_at = now(),
  version = version + 1, owner = NULL, lease_until = NULL,
  nodes_total = $4, nodes_embedded = $5, nodes_reused = $6, nodes_failed = $7,
  nodes_pending = $8, nodes_total_final = nodes_total_final OR $3 LIKE 'succeeded%',
  files_failed = $9, files_scanned = greatest(files_scanned - $10, 0), files_skipped = $11,
  skipped_by_reason = $12::jsonb, warnings = $13, error_reason = $14, error_message = $15
WHERE workspace_id = $1 AND id = $2 AND finished_at IS NULL
"""


async def release_nodes(connection: Connection, run: Run) -> None:
    """Gives back what the run's owner has a lease on; one run writes a workspace at a time."""
    await connection.execute(_RELEASE, run.workspace_id)


async def end_run(
    connection: Connection, run: Run, failure: Failure | None, *, abandoned: bool = False
) -> RunState:
    """Ends a run; returns its last state.

    Args:
        connection: inside a transaction that has the run's row locked.
        run: the run as its row is now.
        failure: why it could not go on, or None.
        abandoned: whether its owners stopped again and again.
    """
    if run.state in OWNED_RUN_STATES:
        await release_nodes(connection, run)
    key = run.workspace_id, run.id
    nodes = NODES[run.is_scoped]
    await connection.execute(_FORGET_ENDED, *key)
    await connection.execute(_LIST_FAILED.format(nodes=nodes), *key)
    counts = await connection.fetchrow(_COUNT.format(nodes=nodes), *key)
    assert counts is not None
    # What a scoped run skipped, it counted by itself.
    skipped = [] if run.is_scoped else await connection.fetch(_SKIPPED, run.workspace_id)
    state = _final_state(run, counts, failure, abandoned=abandoned)
    await connection.execute(_END, *key, state, *_end_values(run, state, counts, skipped, failure))
    await connection.execute("UPDATE workspaces SET last_run_id = $2 WHERE id = $1", *key)
    return state


def _final_state(
    run: Run, counts: asyncpg.Record, failure: Failure | None, *, abandoned: bool
) -> RunState:
    return decide_final_state(
        cancel_requested=run.cancel_requested,
        abandoned=abandoned,
        stopped_by_failure=failure is not None,
        nodes_left=_left(counts),
        nodes_failed=counts["failed"],
        files_failed=counts["files_failed"],
        warnings=len(run.warnings),
    )


def _left(counts: asyncpg.Record) -> int:
    return int(counts["total"] - counts["embedded"] - counts["failed"])


def _end_values(
    run: Run,
    state: RunState,
    counts: asyncpg.Record,
    skipped: Sequence[asyncpg.Record],
    failure: Failure | None,
) -> tuple[Any, ...]:
    """Returns the last values of `_END`: what the tables hold, and why the run failed."""
    assert state in FINISHED_RUN_STATES
    reasons = dict(run.skipped_by_reason)
    for item in skipped:
        reasons[item["skip_reason"]] = reasons.get(item["skip_reason"], 0) + item["count"]
    left = _left(counts)
    warnings = list(run.warnings)
    if left and state is RunState.SUCCEEDED_WITH_WARNINGS:
        warnings.append(f"{left} of {counts['total']} nodes are still to be embedded.")
    shown = failure if state in {RunState.FAILED, RunState.STALE} else None
    return (
        counts["total"],
        counts["forwarded"],
        counts["embedded"] - counts["forwarded"],
        counts["failed"],
        left,
        counts["files_failed"],
        sum(item["count"] for item in skipped) if run.scan_finished else 0,
        run.counters.files_skipped if run.is_scoped else sum(reasons.values()),
        json.dumps(reasons),
        warnings,
        shown.reason if shown else None,
        shown.message if shown else None,
    )
