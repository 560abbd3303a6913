"""What a run adds to its row while it goes on, under its fence."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from services.indexer.run_spec import RunWishes
from services.indexer.storage.run_rows import COUNTERS, HELD, held_up, key_of, rests
from services.indexer.storage.run_scope import queue_of
from services.indexer.transitions import RunState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from services.indexer.run import Outcome, Run, RunCounters
    from services.indexer.storage.database import Connection

_SUMS = ", ".join(f"{name} = {name} + ${i}" for i, name in enumerate(COUNTERS, start=5))

_ADD = f"""
UPDATE runs SET {_SUMS}, version = version + 1, updated_at = now(),
  stage_seconds = stage_seconds || (
    SELECT coalesce(jsonb_object_agg(key,
      coalesce((stage_seconds ->> key)::float8, 0) + value::float8), '{{}}')
    FROM jsonb_each_text($4::jsonb))
WHERE {HELD} RETURNING state
"""

_BEAT = f"""
UPDATE runs SET lease_until = clock_timestamp() + make_interval(secs => $4)
WHERE {HELD} RETURNING state, cancel_requested_at IS NOT NULL AS cancel,
  EXISTS (SELECT 1 FROM runs o WHERE o.workspace_id = $1 AND o.finished_at IS NULL
    AND o.state = 'queued' AND (o.priority, o.model_id IS NULL)
      > (runs.priority, runs.model_id IS NULL) AND NOT {held_up("o")} AND NOT {rests("o")}
    ) AS give_way
"""
"""A run gives way to one that goes before it and can be taken: to another it would give way again
and again, as it is the next to be taken itself."""

_BEAT_NODES = """
UPDATE {queue} SET lease_until = clock_timestamp() + make_interval(secs => $3)
WHERE workspace_id = $1 {only} AND status = 'processing' AND {id} = ANY (ARRAY(
  SELECT {id} FROM {queue}
  WHERE workspace_id = $1 {only} AND status = 'processing' AND lease_owner = $2
  FOR UPDATE SKIP LOCKED))
"""
"""A statement of its own that waits for no row: commits lock nodes first and the run last, so
whoever has the run's row must not wait for a node's.

An array and no join, and twice what is in work, so that no plan reads more than that: a join was
each node of the workspace times each claim where the planner knew of no node there.
"""

_NODES_TOTAL = "SELECT nodes_total FROM runs WHERE workspace_id = $1 AND id = $2"

_RECORD = """
INSERT INTO run_outcomes (workspace_id, run_id, entity, path, node_id, qualified_name,
  result, stage, error_reason, error_message, attempts, duration_seconds)
SELECT $1, $2, * FROM unnest($3::text[], $4::text[], $5::bigint[], $6::text[], $7::text[],
  $8::text[], $9::text[], $10::text[], $11::int[], $12::float8[])
ON CONFLICT (workspace_id, run_id, path, entity, node_id) DO UPDATE SET
  result = excluded.result, stage = excluded.stage,
  error_reason = excluded.error_reason, error_message = excluded.error_message,
  attempts = excluded.attempts, duration_seconds = excluded.duration_seconds, recorded_at = now()
"""

_RELEASE = f"""
UPDATE runs SET version = version + 1, updated_at = now(), owner = NULL,
  lease_until = NULL,
  attempt = CASE WHEN forwards > $5 THEN 0 WHEN $4 THEN attempt ELSE attempt - 1 END,
  state = CASE state WHEN 'pausing' THEN 'paused' ELSE 'queued' END
WHERE {HELD} AND state <> 'cancelling' RETURNING true
"""


async def add(
    connection: Connection,
    run: Run,
    counters: RunCounters,
    stage_seconds: Mapping[str, float],
) -> RunState | None:
    """Adds to the counters; returns the run's state, or None when its owner lost it."""
    state = await connection.fetchval(
        _ADD, *key_of(run), json.dumps(dict(stage_seconds)), *dataclasses.astuple(counters)
    )
    return None if state is None else RunState(state)


async def nodes_total(connection: Connection, run: Run) -> int:
    """Returns how many nodes a run has counted."""
    return int(await connection.fetchval(_NODES_TOTAL, run.workspace_id, run.id) or 0)


async def beat(
    connection: Connection, run: Run, owner: Any, lease_seconds: float
) -> RunWishes | None:
    """Prolongs the leases of a run and its nodes; returns None when its owner lost it."""
    row = await connection.fetchrow(_BEAT, *key_of(run), lease_seconds)
    if row is None:
        return None
    beat_nodes = _BEAT_NODES.format(**queue_of(run))
    await connection.execute(beat_nodes, run.workspace_id, owner, lease_seconds)
    return RunWishes(RunState(row["state"]), row["cancel"], row["give_way"])


async def record_outcomes(connection: Connection, run: Run, outcomes: Sequence[Outcome]) -> None:
    """Records how files and nodes ended; the last outcome of each stands."""
    if not outcomes:
        return
    columns = zip(*map(_row, outcomes), strict=True)
    await connection.execute(_RECORD, run.workspace_id, run.id, *map(list, columns))


async def release(connection: Connection, run: Run, *, left: bool = False) -> bool:
    """Puts a run back; returns whether it was the caller's.

    It is as if it had not been taken now, unless it was left before it embedded anything. One that
    embedded something is none that stops its owners: its earlier attempts are forgotten.
    """
    return bool(await connection.fetchval(_RELEASE, *key_of(run), left, run.counters.forwards))


async def change(connection: Connection, run: Run, assignments: str, *arguments: Any) -> bool:
    """Assigns to the run's row ($4 and on); returns whether it is the caller's."""
    held = await connection.fetchval(
        f"UPDATE runs SET {assignments}, version = version + 1, updated_at = now() "
        f"WHERE {HELD} RETURNING true",
        *key_of(run),
        *arguments,
    )
    return bool(held)


def _row(item: Outcome) -> tuple[Any, ...]:
    return (
        item.entity,
        item.path,
        item.node_id,
        item.qualified_name,
        item.result,
        item.stage,
        item.failure.reason if item.failure else None,
        item.failure.message if item.failure else None,
        item.attempts,
        item.duration_seconds,
    )
