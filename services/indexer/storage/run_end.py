"""The end of a run: its state and counts, read from what the tables hold."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from services.indexer import metrics
from services.indexer.model import CHANGED_REASONS
from services.indexer.storage.database import after_commit
from services.indexer.storage.run_scope import counted_nodes, queue_of, unfinished_nodes
from services.indexer.transitions import (
    FINISHED_RUN_STATES,
    OWNED_RUN_STATES,
    RunState,
    decide_final_state,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import asyncpg

    from services.indexer.model import Failure
    from services.indexer.run import Run
    from services.indexer.storage.database import Connection

_RELEASE = """
UPDATE {queue} SET status = 'pending', attempt = greatest(attempt - 1, 0),
  lease_owner = NULL, lease_until = NULL, updated_at = now(), status_since = now()
WHERE workspace_id = $1 AND status = 'processing' {only}
"""

_FORGET_ENDED = """
DELETE FROM run_outcomes o WHERE o.workspace_id = $1 AND o.run_id = $2 AND o.entity = 'node'
  AND NOT EXISTS (SELECT 1 FROM {queue}
    WHERE workspace_id = $1 AND {id} = o.node_id AND status = 'failed' {only})
"""

_LIST_FAILED = """
INSERT INTO run_outcomes (workspace_id, run_id, entity, path, node_id, qualified_name, result,
  stage, error_reason, error_message, attempts)
SELECT $1, $2, 'node', f.path, n.id, n.qualified_name,
  CASE WHEN n.error_reason = 'ERROR_REASON_TIMEOUT' THEN 'timeout'
    WHEN n.error_reason = ANY ($3) THEN 'stale' ELSE 'failed' END,
  coalesce(n.error_stage, 'embed'),
  n.error_reason,
  n.error_message, n.attempt
FROM {nodes} JOIN files f ON f.workspace_id = n.workspace_id AND f.id = n.file_id
WHERE n.workspace_id = $1 AND n.status = 'failed'
ON CONFLICT DO NOTHING
"""
"""Also what failed in an earlier run and still does: each failed node is listed with its reason
and the stage at which it failed."""

_COUNT_MODEL = """
SELECT count(*) AS total, count(*) FILTER (WHERE status = 'embedded') AS embedded,
  least(count(*) FILTER (WHERE status = 'embedded'), (SELECT nodes_embedded FROM runs
    WHERE workspace_id = $1 AND id = $2)) AS forwarded,
  count(*) FILTER (WHERE status = 'failed') AS failed
FROM {nodes} WHERE n.workspace_id = $1
"""

_COUNT = """
WITH per AS MATERIALIZED (
  SELECT file_id, count(*) AS total, count(*) FILTER (WHERE status = 'embedded') AS embedded,
    count(*) FILTER (WHERE status = 'embedded' AND embedded_run = $2) AS forwarded,
    count(*) FILTER (WHERE status = 'failed') AS failed
  FROM {nodes} WHERE n.workspace_id = $1 GROUP BY file_id),
touched AS (
  SELECT file_id FROM per WHERE forwarded > 0 OR embedded < total
  UNION
  SELECT f.id FROM run_outcomes o
  JOIN files f ON f.workspace_id = o.workspace_id AND f.path = o.path
  WHERE o.workspace_id = $1 AND o.run_id = $2 AND o.entity = 'file'),
listed AS (
  INSERT INTO run_outcomes (workspace_id, run_id, entity, path, result, stage,
    nodes_embedded, nodes_reused, nodes_failed, nodes_pending)
  SELECT $1, $2, 'file', f.path, 'ok', 'embed',
    forwarded, embedded - forwarded, failed, total - embedded - failed
  FROM touched JOIN per USING (file_id) JOIN files f ON f.workspace_id = $1 AND f.id = file_id
  ON CONFLICT (workspace_id, run_id, path, entity, node_id) DO UPDATE SET
    nodes_embedded = excluded.nodes_embedded, nodes_reused = excluded.nodes_reused,
    nodes_failed = excluded.nodes_failed, nodes_pending = excluded.nodes_pending)
SELECT coalesce(sum(total), 0)::bigint AS total, coalesce(sum(embedded), 0)::bigint AS embedded,
  coalesce(sum(forwarded), 0)::bigint AS forwarded, coalesce(sum(failed), 0)::bigint AS failed
FROM per
"""
"""Counts nodes, and tells each file's part in its outcome: one pass over the nodes for both."""

_COUNT_FILES = """
SELECT count(*) FILTER (WHERE result IN ('failed', 'timeout')) AS failed,
  count(*) FILTER (WHERE stage = 'parse') AS parsed
FROM run_outcomes WHERE workspace_id = $1 AND run_id = $2 AND entity = 'file'
"""

_SKIPPED = """
SELECT skip_reason, count(*) AS count FROM files
WHERE workspace_id = $1 AND state = 'skipped' GROUP BY skip_reason
"""

_SKIPPED_IN_SCOPE = """
SELECT error_reason AS skip_reason, count(*) AS count FROM run_outcomes
WHERE workspace_id = $1 AND run_id = $2 AND entity = 'file' AND result = 'skipped'
GROUP BY error_reason
"""
"""What a scoped run left out, also under an earlier owner: no other looks at it again."""

_END = """
UPDATE runs SET state = $3, phase = 'finished', finished_at = now(), updated_at = now(),
  version = version + 1, owner = NULL, lease_until = NULL,
  nodes_total = $4, nodes_embedded = $5, nodes_reused = $6, nodes_failed = $7,
  nodes_pending = $8, nodes_total_final = nodes_total_final OR $3 LIKE 'succeeded%',
  files_failed = $9, files_scanned = greatest(files_scanned - $10, 0), files_skipped = $11,
  skipped_by_reason = $12::jsonb, warnings = $13, error_reason = $14, error_message = $15,
  files_parsed = $16, files_to_parse = greatest(files_to_parse, $16)
WHERE workspace_id = $1 AND id = $2 AND finished_at IS NULL
"""


async def release_nodes(connection: Connection, run: Run) -> None:
    """Gives back what the run's owner has a lease on; one run writes a workspace at a time."""
    await connection.execute(_RELEASE.format(**queue_of(run)), run.workspace_id)


async def end_run(
    connection: Connection, run: Run, failure: Failure | None, *, abandoned: bool = False
) -> RunState:
    """Ends a run, whoever it is that ends it; returns its last state.

    It is counted when that is committed.

    Args:
        connection: inside a transaction of `Database` that has the run's row locked.
        run: the run as its row is now.
        failure: why it could not go on, or None.
        abandoned: whether its owners stopped again and again.
    """
    if run.state in OWNED_RUN_STATES:
        await release_nodes(connection, run)
    key = run.workspace_id, run.id
    counts = await _counts(connection, run)
    skipped = await _skipped(connection, run)
    state = _final_state(run, counts, failure, abandoned=abandoned)
    await connection.execute(_END, *key, state, *_end_values(run, state, counts, skipped, failure))
    if run.model_id is None:  # what search finds is not a work of the others
        await connection.execute("UPDATE workspaces SET last_run_id = $2 WHERE id = $1", *key)
    after_commit(connection, metrics.RUNS.labels(state.value).inc)
    return state


async def _skipped(connection: Connection, run: Run) -> Sequence[asyncpg.Record]:
    """Returns how many files are left out, by reason, of those that the run looked at."""
    if run.model_id is not None:
        return ()
    rows: Sequence[asyncpg.Record]
    if run.is_scoped:
        rows = await connection.fetch(_SKIPPED_IN_SCOPE, run.workspace_id, run.id)
    else:
        rows = await connection.fetch(_SKIPPED, run.workspace_id)
    return rows


async def _counts(connection: Connection, run: Run) -> Mapping[str, int]:
    """Lists what failed, tells each file's outcome its nodes, and returns counts of all."""
    key = run.workspace_id, run.id
    await connection.execute(_FORGET_ENDED.format(**queue_of(run)), *key)
    await connection.execute(
        _LIST_FAILED.format(nodes=unfinished_nodes(run)), *key, list(CHANGED_REASONS)
    )
    count = _COUNT if run.model_id is None else _COUNT_MODEL
    nodes = await connection.fetchrow(count.format(nodes=counted_nodes(run)), *key)
    files = await connection.fetchrow(_COUNT_FILES, *key)
    assert nodes is not None
    assert files is not None
    return {**nodes, "files_failed": files["failed"], "files_parsed": files["parsed"]}


def _final_state(
    run: Run, counts: Mapping[str, int], failure: Failure | None, *, abandoned: bool
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


def _left(counts: Mapping[str, int]) -> int:
    return counts["total"] - counts["embedded"] - counts["failed"]


def _end_values(
    run: Run,
    state: RunState,
    counts: Mapping[str, int],
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
        sum(reasons.values()),
        json.dumps(reasons),
        warnings,
        shown.reason if shown else None,
        shown.message if shown else None,
        counts["files_parsed"],
    )
