"""Taking a run: the first that waits or whose owner stopped beating, and what it left behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.indexer.model import TRANSIENT_REASONS, Failure
from services.indexer.run import RunMode
from services.indexer.run_spec import MODEL_REPLACED
from services.indexer.storage.model_rows import LONGEST_SECONDS
from services.indexer.storage.run_end import end_run
from services.indexer.storage.run_rows import OWNED_STATES, SELECT_RUNS, held_up, rests, run_of
from services.indexer.storage.run_scope import (
    NOT_THERE,
    forget_covered,
    queue_of,
    retry_given,
    set_baseline,
)

if TYPE_CHECKING:
    from uuid import UUID

    from services.indexer.run import Run
    from services.indexer.storage.database import Connection

NEXT_RUN = f"""
{SELECT_RUNS}
WHERE r.finished_at IS NULL AND r.priority >= $1
  AND (r.state = 'queued' AND NOT {held_up("r")} AND NOT {rests("r")} AND NOT EXISTS (
      SELECT 1 FROM runs o WHERE o.workspace_id = r.workspace_id AND o.finished_at IS NULL
        AND o.state IN ({OWNED_STATES}))
    OR r.state IN ({OWNED_STATES}) AND r.lease_until < now())
ORDER BY r.priority DESC, r.model_id IS NOT NULL, r.seq LIMIT 1 OFFSET $2
FOR UPDATE OF r SKIP LOCKED FOR NO KEY UPDATE OF w SKIP LOCKED
"""
"""The run to take; workspaces in which others are taking one are passed over, so that none takes
the second while the first is being taken.

One owner at a time writes a workspace. Of one priority, runs of models beside the active one go
last.
"""

_TAKE = f"""
UPDATE runs SET state = CASE state WHEN 'queued' THEN 'running' ELSE state END,
  fence = nextval('fences'), owner = $3, attempt = attempt + 1,
  lease_until = clock_timestamp() + make_interval(secs => $4),
  started_at = coalesce(started_at, now()), updated_at = now(), version = version + 1,
  phase = 'scan', files_scanned = 0, files_skipped = 0, files_failed = 0, scan_finished = false,
  files_to_parse = 0, files_parsed = 0, nodes_total_final = false,
  warnings = ARRAY(SELECT w FROM unnest(warnings) w
    WHERE w LIKE '%{NOT_THERE}' OR w LIKE '{MODEL_REPLACED}%')
WHERE workspace_id = $1 AND id = $2
"""

_BEGIN_LEASE = """
UPDATE runs SET lease_until = clock_timestamp() + make_interval(secs => $3)
WHERE workspace_id = $1 AND id = $2
"""
"""Last, by the clock and not by the transaction's start: what came before may have waited for rows
that an owner had locked who fell asleep, and a lease that has passed by the time when others see it
lets them take the run at once."""

_FORGET = """
DELETE FROM run_outcomes WHERE workspace_id = $1 AND run_id = $2
  AND (entity = 'node' OR result IN ('failed', 'timeout', 'stale'))
"""
"""Failures of an earlier owner: what still stands comes out again, as do warnings of its scan. What
became of the files that it parsed stands: nobody parses them again."""

_RECLAIM = """
UPDATE {queue} SET
  status = CASE WHEN crash_count >= 2 THEN 'failed' ELSE 'pending' END,
  error_reason = CASE WHEN crash_count >= 2 THEN 'ERROR_REASON_WORKER_DIED' END,
  error_message = CASE WHEN crash_count >= 2
    THEN 'Three workers stopped while they had this node.' END,
  error_stage = NULL,
  crash_count = crash_count + 1, available_at = now(), lease_owner = NULL, lease_until = NULL,
  updated_at = now(), status_since = now()
WHERE workspace_id = $1 AND status = 'processing' {only}
"""
"""Takes back nodes of an owner that stopped.

One run writes a workspace at a time, so whoever had the lease is fenced out by now.
"""

_TRY_AGAIN = """
UPDATE {queue} SET status = 'pending', attempt = 0, crash_count = 0, available_at = now(),
  error_reason = NULL, error_message = NULL, updated_at = now(), status_since = now()
WHERE workspace_id = $1 AND status = 'failed' AND ($2 OR error_reason = ANY ($3)) {only}
"""
"""Failures that may pass are tried once by every new run, all others by a full one alone: a text
that kills the model would kill it each time. A scoped run tries those of its scope.
"""

_SETTLE_PAUSE = """
UPDATE runs SET state = 'paused', owner = NULL, lease_until = NULL, updated_at = now(),
  version = version + 1
WHERE workspace_id = $1 AND id = $2
"""


async def lock_next(connection: Connection, least_priority: int, passed_over: int) -> Run | None:
    """Returns the run to take, its row locked, or None; so many before it are passed over."""
    row = await connection.fetchrow(NEXT_RUN, least_priority, passed_over)
    return None if row is None else run_of(row)


async def take_over(connection: Connection, run: Run, owner: UUID, lease_seconds: float) -> None:
    """Makes `owner` the owner of a locked run under a new fence, with all that was left behind."""
    key = run.workspace_id, run.id
    await connection.execute(_TAKE, *key, owner, lease_seconds)
    await connection.execute(_FORGET, *key)
    await _reclaim(connection, run)
    if run.is_scoped:
        await forget_covered(connection, *key)
    if run.started_at is None:  # not when it goes on after a pause
        await _try_failed_again(connection, run)
    await set_baseline(connection, run)
    await connection.execute(_BEGIN_LEASE, *key, lease_seconds)


async def settle_pause(connection: Connection, run: Run) -> None:
    """Pauses a locked run whose owner stopped before it did."""
    await connection.execute(_SETTLE_PAUSE, run.workspace_id, run.id)
    await _reclaim(connection, run)


async def end_stale(connection: Connection, run: Run) -> None:
    """Ends a locked run that was taken too often: it must be what stops its owners."""
    message = f"The run was taken up {run.attempt} times and never came to its end."
    await _reclaim(connection, run)
    await end_run(connection, run, Failure("ERROR_REASON_WORKER_DIED", message), abandoned=True)


async def _reclaim(connection: Connection, run: Run) -> None:
    await connection.execute(_RECLAIM.format(**queue_of(run)), run.workspace_id)


async def _try_failed_again(connection: Connection, run: Run) -> None:
    if run.is_scoped:
        await retry_given(connection, run.workspace_id, run.id)
    else:
        await connection.execute(
            _TRY_AGAIN.format(**queue_of(run)),
            run.workspace_id,
            run.mode is RunMode.FULL,
            list(TRANSIENT_REASONS),
            timeout=LONGEST_SECONDS,
        )
