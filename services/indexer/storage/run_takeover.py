"""Taking a run: the oldest that waits or whose owner stopped beating, and what it left behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.indexer.model import TRANSIENT_REASONS, RunMode
from services.indexer.storage.run_rows import OWNED_STATES

if TYPE_CHECKING:
    from uuid import UUID

    import asyncpg

    from services.indexer.storage.database import Connection

_OLDEST = f"""
SELECT workspace_id, id, attempt, mode, started_at FROM runs
WHERE finished_at IS NULL
  AND (state = 'queued' OR (state IN ({OWNED_STATES}) AND lease_until < now()))
ORDER BY seq LIMIT 1 FOR UPDATE SKIP LOCKED
"""

_TAKE = """
UPDATE runs SET state = CASE state WHEN 'queued' THEN 'running' ELSE state END,
  fence = nextval('fences'), owner = $3, attempt = attempt + 1,
  lease_until = now() + make_interval(secs => $4),
  started_at = coalesce(started_at, now()), updated_at = now(), version = version + 1,
  phase = 'scan', files_scanned = 0, files_skipped = 0, files_failed = 0, scan_finished = false,
  files_to_parse = 0, files_parsed = 0, nodes_total_final = false, warnings = '{}'
WHERE workspace_id = $1 AND id = $2
"""

_FORGET = "DELETE FROM run_outcomes WHERE workspace_id = $1 AND run_id = $2"
"""Outcomes of an earlier owner: what still stands comes out again."""

_RECLAIM = """
UPDATE nodes SET
  status = CASE WHEN crash_count >= 2 AND status = 'processing' THEN 'failed' ELSE 'pending' END,
  error_reason = CASE WHEN crash_count >= 2 AND status = 'processing'
    THEN 'ERROR_REASON_WORKER_DIED' END,
  error_message = CASE WHEN crash_count >= 2 AND status = 'processing'
    THEN 'Three workers stopped while they had this node.' END,
  crash_count = CASE WHEN status = 'processing' THEN crash_count + 1 ELSE 0 END,
  attempt = CASE WHEN status = 'processing' THEN attempt ELSE 0 END,
  available_at = now(), lease_owner = NULL, lease_until = NULL, updated_at = now()
WHERE workspace_id = $1 AND (status = 'processing'
  OR (status = 'failed' AND $2 AND ($3 OR error_reason = ANY ($4))))
"""
"""Takes back nodes of an owner that stopped, and tries failed ones again.

One run writes a workspace at a time, so whoever had the lease is fenced out by now. Failures that
may pass are tried once by every new run, all others by a full one alone: a text that kills the
model would kill it each time.
"""

_BASELINE = """
UPDATE runs SET (nodes_total, nodes_embedded, nodes_reused, nodes_failed, nodes_pending) = (
  SELECT count(*), count(*) FILTER (WHERE status = 'embedded' AND embedded_run = $2),
    count(*) FILTER (WHERE status = 'embedded' AND embedded_run IS DISTINCT FROM $2),
    count(*) FILTER (WHERE status = 'failed'),
    count(*) FILTER (WHERE status IN ('pending', 'processing'))
  FROM nodes WHERE workspace_id = $1)
WHERE workspace_id = $1 AND id = $2
"""

_END_STALE = """
UPDATE runs SET state = CASE state WHEN 'cancelling' THEN 'cancelled' ELSE 'stale' END,
  phase = 'finished', finished_at = now(), updated_at = now(), version = version + 1,
  owner = NULL, lease_until = NULL,
  error_reason = CASE WHEN state <> 'cancelling' THEN 'ERROR_REASON_WORKER_DIED' END,
  error_message = CASE WHEN state <> 'cancelling'
    THEN 'The run was taken up ' || attempt || ' times and never came to its end.' END
WHERE workspace_id = $1 AND id = $2
"""


async def lock_oldest(connection: Connection) -> asyncpg.Record | None:
    """Returns the run to take, locked, or None; those that others are taking are passed over."""
    return await connection.fetchrow(_OLDEST)


async def take_over(
    connection: Connection, row: asyncpg.Record, owner: UUID, lease_seconds: float
) -> None:
    """Makes `owner` the owner of a locked run under a new fence, with all that was left behind."""
    key = row["workspace_id"], row["id"]
    await connection.execute(_TAKE, *key, owner, lease_seconds)
    await connection.execute(_FORGET, *key)
    # Not by the attempt, which a run that is given back has never burnt.
    await _reclaim(connection, row, first=row["started_at"] is None)
    await set_baseline(connection, *key)


async def end_stale(connection: Connection, row: asyncpg.Record) -> None:
    """Ends a locked run that was taken too often: it must be what stops its owners."""
    await connection.execute(_END_STALE, row["workspace_id"], row["id"])
    await _reclaim(connection, row, first=False)


async def set_baseline(connection: Connection, workspace_id: int, run_id: UUID) -> None:
    """Starts a run's progress from what the workspace holds."""
    await connection.execute(_BASELINE, workspace_id, run_id)


async def _reclaim(connection: Connection, row: asyncpg.Record, *, first: bool) -> None:
    await connection.execute(
        _RECLAIM,
        row["workspace_id"],
        first,
        row["mode"] == RunMode.FULL,
        list(TRANSIENT_REASONS),
    )
