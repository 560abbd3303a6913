"""The ledger of runs: the one class that writes their rows and outcomes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING, Any

from services.indexer.errors import RequestIdReusedError, RunOwnershipLostError
from services.indexer.storage.run_end import end_run, release_nodes
from services.indexer.storage.run_rows import (
    COUNTERS,
    HELD,
    SELECT_RUNS,
    key_of,
    outcome_of,
    run_of,
)
from services.indexer.storage.run_takeover import end_stale, lock_oldest, set_baseline, take_over
from services.runtime.errors import NotFoundError, StateConflictError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from uuid import UUID

    from services.indexer.model import Failure, Outcome, Run, RunCounters, RunMode, WorkspaceId
    from services.indexer.storage.database import Connection, Database
    from services.indexer.transitions import RunState

_MOST_WARNINGS = 100


class RunLedger:
    """Creates, takes, feeds and ends runs."""

    def __init__(self, database: Database, owner: UUID, lease_seconds: float) -> None:
        self._database = database
        self._owner = owner
        self._lease_seconds = lease_seconds

    async def create(
        self,
        workspace_id: WorkspaceId,
        request_id: UUID,
        mode: RunMode,
        exclude: Sequence[str],
        *,
        join: bool,
    ) -> tuple[Run, bool]:
        """Queues a run; returns it and whether this call queued it.

        While a run of the workspace is not finished, returns that one when `join`.

        Raises:
            RequestIdReusedError: the request id came with another request before.
            StateConflictError: another run is not finished, and `join` is false.
        """
        digest = hashlib.sha256(json.dumps([mode, list(exclude)]).encode()).digest()
        async with self._database.transaction() as connection:
            # One creator at a time per workspace: the row is the lock.
            held = await connection.fetchval(
                "SELECT true FROM workspaces WHERE id = $1 FOR NO KEY UPDATE", workspace_id
            )
            if not held:
                raise NotFoundError("The workspace was deleted meanwhile.")
            earlier = await connection.fetchrow(
                f"{SELECT_RUNS} WHERE r.workspace_id = $1 AND r.request_id = $2",
                workspace_id,
                request_id,
            )
            if earlier is not None:
                if earlier["request_digest"] != digest:
                    raise RequestIdReusedError(
                        "This request id was used with another request.",
                        metadata={"request_id": str(request_id)},
                    )
                return run_of(earlier), False
            unfinished = await connection.fetchrow(
                f"{SELECT_RUNS} WHERE r.workspace_id = $1 AND r.finished_at IS NULL", workspace_id
            )
            if unfinished is not None:
                if not join:
                    raise StateConflictError(
                        "A run of this workspace is not finished.",
                        metadata={"state": unfinished["state"], "allowed": "finished"},
                    )
                return run_of(unfinished), False
            run_id = await connection.fetchval(
                """
                INSERT INTO runs (workspace_id, request_id, request_digest, mode, exclude)
                VALUES ($1, $2, $3, $4, $5) RETURNING id
                """,
                workspace_id,
                request_id,
                digest,
                mode,
                list(exclude),
            )
            row = await connection.fetchrow(
                f"{SELECT_RUNS} WHERE r.workspace_id = $1 AND r.id = $2", workspace_id, run_id
            )
        assert row is not None
        return run_of(row), True

    async def get(self, workspace_name: str, run_id: UUID) -> Run:
        """Returns a run. Raises NotFoundError."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                f"{SELECT_RUNS} WHERE w.name = $1 AND r.id = $2", workspace_name, run_id
            )
        if row is None:
            name = f"workspaces/{workspace_name}/indexRuns/{run_id}"
            raise NotFoundError(f"There is no run {name}.", metadata={"resource": name})
        return run_of(row)

    async def page(
        self, workspace_id: WorkspaceId | None, before_seq: int, limit: int
    ) -> list[Run]:
        """Returns runs, newest first, those older than a sequence number."""
        async with self._database.connection() as connection:
            if workspace_id is None:
                rows = await connection.fetch(
                    f"{SELECT_RUNS} WHERE r.seq < $1 ORDER BY r.seq DESC LIMIT $2",
                    before_seq,
                    limit,
                )
            else:
                rows = await connection.fetch(
                    f"{SELECT_RUNS} WHERE r.workspace_id = $1 AND r.seq < $2 "
                    "ORDER BY r.seq DESC LIMIT $3",
                    workspace_id,
                    before_seq,
                    limit,
                )
        return [run_of(row) for row in rows]

    async def outcomes(
        self,
        run: Run,
        results: Sequence[str],
        after: tuple[str, str, int],
        limit: int,
    ) -> list[Outcome]:
        """Returns outcomes in path order, those after (path, entity, node id)."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                """
                SELECT * FROM run_outcomes
                WHERE workspace_id = $1 AND run_id = $2
                  AND (path, entity, node_id) > ($3, $4, $5)
                  AND (cardinality($6::text[]) = 0 OR result = ANY ($6))
                ORDER BY path, entity, node_id LIMIT $7
                """,
                run.workspace_id,
                run.id,
                *after,
                list(results),
                limit,
            )
        return [outcome_of(row) for row in rows]

    async def request_cancel(self, run: Run) -> None:
        """Asks for the end of a run; one that nobody owns ends at once. No effect on ended ones."""
        async with self._database.connection() as connection:
            await connection.execute(
                """
                UPDATE runs SET cancel_requested_at = coalesce(cancel_requested_at, now()),
                  state = CASE WHEN owner IS NULL THEN 'cancelled' ELSE 'cancelling' END,
                  finished_at = CASE WHEN owner IS NULL THEN now() END,
                  updated_at = now(), version = version + 1
                WHERE workspace_id = $1 AND id = $2 AND finished_at IS NULL
                """,
                run.workspace_id,
                run.id,
            )

    async def take(self, max_attempts: int) -> Run | None:
        """Takes the oldest run that waits or whose owner stopped beating, with a new fence.

        A run that was taken too often ends stale instead: it must be what stops its owners.
        """
        async with self._database.transaction() as connection:
            while (row := await lock_oldest(connection)) is not None:
                if row["attempt"] < max_attempts:
                    break
                await end_stale(connection, row)
            if row is None:
                return None
            await take_over(connection, row, self._owner, self._lease_seconds)
            taken = await connection.fetchrow(
                f"{SELECT_RUNS} WHERE r.workspace_id = $1 AND r.id = $2",
                row["workspace_id"],
                row["id"],
            )
        assert taken is not None
        return run_of(taken)

    async def beat(self, run: Run) -> bool:
        """Prolongs the lease of a run and of its nodes; returns whether a cancel was asked for.

        Raises:
            RunOwnershipLostError: another replica took the run.
        """
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                f"""
                UPDATE runs SET lease_until = now() + make_interval(secs => $4)
                WHERE {HELD} RETURNING cancel_requested_at IS NOT NULL AS cancel
                """,
                *key_of(run),
                self._lease_seconds,
            )
            if row is None:
                raise lost(run)
            # A statement of its own that waits for no row: commits lock nodes first and the run
            # last, so whoever has the run's row must not wait for a node's.
            await connection.execute(
                """
                UPDATE nodes SET lease_until = now() + make_interval(secs => $3)
                WHERE workspace_id = $1 AND id IN (
                  SELECT id FROM nodes
                  WHERE workspace_id = $1 AND status = 'processing' AND lease_owner = $2
                  FOR UPDATE SKIP LOCKED)
                """,
                run.workspace_id,
                self._owner,
                self._lease_seconds,
            )
        return bool(row["cancel"])

    async def add(
        self,
        connection: Connection,
        run: Run,
        counters: RunCounters,
        *,
        stage_seconds: Mapping[str, float] | None = None,
        outcomes: Iterable[Outcome] = (),
    ) -> None:
        """Adds to a run's counters, inside the caller's transaction.

        Raises:
            RunOwnershipLostError: another replica took the run; the transaction must not commit.
        """
        await self._record_outcomes(connection, run, list(outcomes))
        sums = ", ".join(f"{name} = {name} + ${i}" for i, name in enumerate(COUNTERS, start=5))
        held = await connection.fetchval(
            f"""
            UPDATE runs SET {sums}, version = version + 1, updated_at = now(),
              stage_seconds = stage_seconds || (
                SELECT coalesce(jsonb_object_agg(key,
                  coalesce((stage_seconds ->> key)::float8, 0) + value::float8), '{{}}')
                FROM jsonb_each_text($4::jsonb))
            WHERE {HELD} RETURNING true
            """,
            run.workspace_id,
            run.id,
            run.fence,
            json.dumps(dict(stage_seconds or {})),
            *dataclasses.astuple(counters),
        )
        if not held:
            raise lost(run)

    async def record(
        self,
        run: Run,
        counters: RunCounters,
        *,
        stage_seconds: Mapping[str, float] | None = None,
        outcomes: Iterable[Outcome] = (),
    ) -> None:
        """Adds to a run's counters, in a transaction of its own. Raises RunOwnershipLostError."""
        async with self._database.transaction() as connection:
            await self.add(
                connection, run, counters, stage_seconds=stage_seconds, outcomes=outcomes
            )

    async def finish_scan(
        self, run: Run, skipped_by_reason: Mapping[str, int], warnings: Sequence[str]
    ) -> None:
        """Records that the list of files is complete. Raises RunOwnershipLostError."""
        shown = list(warnings[:_MOST_WARNINGS])
        if len(warnings) > _MOST_WARNINGS:
            shown.append(f"{len(warnings) - _MOST_WARNINGS} more warnings are not shown.")
        await self._change(
            run,
            "scan_finished = true, phase = 'parse', skipped_by_reason = $4::jsonb, "
            "warnings = warnings || $5::text[]",
            json.dumps(dict(skipped_by_reason)),
            shown,
        )

    async def finish_plan(self, run: Run) -> None:
        """Records that every node is known. Raises RunOwnershipLostError."""
        await self._change(run, "nodes_total_final = true, phase = 'embed'")

    async def rebase(self, connection: Connection, run: Run) -> None:
        """Counts the nodes anew, inside the caller's transaction. Raises RunOwnershipLostError."""
        held = await connection.fetchval(
            f"SELECT true FROM runs WHERE {HELD} FOR UPDATE", *key_of(run)
        )
        if not held:
            raise lost(run)
        await set_baseline(connection, run.workspace_id, run.id)

    async def release(self, run: Run) -> None:
        """Puts a run back in the queue for another owner, as one that was never taken now.

        Its nodes go back without burning an attempt. Does nothing when the run was lost.
        """
        async with self._database.transaction() as connection:
            held = await connection.fetchval(
                f"""
                UPDATE runs SET version = version + 1, updated_at = now(), owner = NULL,
                  lease_until = NULL, attempt = attempt - 1,
                  state = CASE state WHEN 'cancelling' THEN 'cancelled'
                    WHEN 'pausing' THEN 'paused' ELSE 'queued' END,
                  finished_at = CASE WHEN state = 'cancelling' THEN now() END
                WHERE {HELD} RETURNING true
                """,
                run.workspace_id,
                run.id,
                run.fence,
            )
            if held:
                await release_nodes(connection, run)

    async def finish(self, run: Run, failure: Failure | None) -> RunState:
        """Ends a run: its state and final counts are read from the tables, in one transaction.

        Raises:
            RunOwnershipLostError: another replica took the run.
        """
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(
                f"SELECT * FROM runs WHERE {HELD} FOR UPDATE", *key_of(run)
            )
            if row is None:
                raise lost(run)
            return await end_run(connection, run, row, failure)

    async def _change(self, run: Run, assignments: str, *arguments: Any) -> None:
        async with self._database.connection() as connection:
            held = await connection.fetchval(
                f"UPDATE runs SET {assignments}, version = version + 1, updated_at = now() "
                f"WHERE {HELD} RETURNING true",
                *key_of(run),
                *arguments,
            )
        if not held:
            raise lost(run)

    async def _record_outcomes(
        self, connection: Connection, run: Run, outcomes: Sequence[Outcome]
    ) -> None:
        if not outcomes:
            return
        await connection.executemany(
            """
            INSERT INTO run_outcomes (workspace_id, run_id, entity, path, node_id, qualified_name,
              result, stage, error_reason, error_message, attempts, duration_seconds)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
            ON CONFLICT (workspace_id, run_id, path, entity, node_id) DO UPDATE SET
              result = excluded.result, stage = excluded.stage,
              error_reason = excluded.error_reason, error_message = excluded.error_message,
              attempts = excluded.attempts, recorded_at = now()
            """,
            [
                (
                    run.workspace_id,
                    run.id,
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
                for item in outcomes
            ],
        )


def lost(run: Run) -> RunOwnershipLostError:
    """Returns the error of an owner that is one no more."""
    return RunOwnershipLostError(
        "Another replica owns this run now.", metadata={"resource": run.name}
    )
