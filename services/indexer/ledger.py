"""The ledger of runs: the one class that writes their rows, scopes and outcomes.

Its statements stand in `storage/run_*.py`, which nothing else imports to write.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import asyncpg

from services.indexer import metrics
from services.indexer.errors import RunOwnershipLostError
from services.indexer.storage import (
    marks,
    model_marks,
    run_create,
    run_models,
    run_progress,
    run_retention,
    run_scope,
    run_wishes,
)
from services.indexer.storage.model_rows import lock_workspace
from services.indexer.storage.run_end import end_run, release_nodes
from services.indexer.storage.run_reader import RunReader
from services.indexer.storage.run_rows import HELD, SELECT_RUNS, key_of, run_of
from services.indexer.storage.run_takeover import end_stale, lock_next, settle_pause, take_over
from services.indexer.transitions import OWNED_RUN_STATES, RunState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from uuid import UUID

    from services.indexer.model import Failure, FileId, ModelId, WorkspaceId
    from services.indexer.run import Outcome, Run, RunCounters
    from services.indexer.run_spec import IfRunning, RunSpec, RunWishes
    from services.indexer.storage.database import Connection, Database
    from services.indexer.storage.run_retention import RetentionRules

_MOST_WARNINGS = 100
_MOST_RACES = 10
"""Times that a take is tried again because another replica took a run of the same workspace."""


class RunLedger(RunReader):
    """Creates, takes, feeds and ends runs."""

    def __init__(self, database: Database, owner: UUID, lease_seconds: float) -> None:
        super().__init__(database)
        self._owner = owner
        self._lease_seconds = lease_seconds
        self.on_state: Callable[[UUID, RunState], None] = lambda _run_id, _state: None
        """Is told the state of a run whenever its owner writes: so a wish is seen at once."""

    async def create(
        self, workspace_id: WorkspaceId, request_id: UUID, spec: RunSpec, if_running: IfRunning
    ) -> tuple[Run, bool]:
        """Queues a run; returns it, or the one that it joins, and whether this call queued it.

        Raises:
            RequestIdReusedError: the request id came with another request before.
            StateConflictError: another run is not finished, and this one may not join or wait.
            OverloadedError: too many runs of the workspace wait.
        """
        async with self._database.transaction() as connection:
            return await self.queue(connection, workspace_id, request_id, spec, if_running)

    async def queue(
        self,
        connection: Connection,
        workspace_id: WorkspaceId,
        request_id: UUID,
        spec: RunSpec,
        if_running: IfRunning,
    ) -> tuple[Run, bool]:
        """Queues a run inside the caller's transaction, as `create`."""
        return await run_create.create_run(connection, workspace_id, request_id, spec, if_running)

    async def retry(self, run: Run, request_id: UUID) -> tuple[Run, bool]:
        """Queues a run over what is left of a finished one, as `create`."""
        async with self._database.transaction() as connection:
            return await run_create.create_retry(connection, run, request_id)

    async def request_pause(self, run: Run) -> None:
        """Asks for a pause. Raises StateConflictError."""
        async with self._database.transaction() as connection:
            await run_wishes.pause(connection, run)

    async def request_resume(self, run: Run) -> None:
        """Ends a pause. Raises StateConflictError."""
        async with self._database.transaction() as connection:
            await run_wishes.resume(connection, run)

    async def request_cancel(self, run: Run) -> None:
        """Asks for the end of a run; one that nobody owns ends at once. No effect on ended ones."""
        async with self._database.transaction() as connection:
            await lock_workspace(connection, run.workspace_id)
            await run_wishes.cancel(connection, run)

    async def take(
        self, max_attempts: int, least_priority: int = 0, passed_over: int = 0
    ) -> Run | None:
        """Takes the first run that waits or whose owner stopped beating, with a new fence.

        A run that was taken too often ends stale instead: it must be what stops its owners.

        Args:
            max_attempts: how often that is.
            least_priority: of runs that may be taken.
            passed_over: how many are left where they are, as the first of them cannot be taken.
        """
        for _ in range(_MOST_RACES):
            try:
                run, expired = await self._take(max_attempts, least_priority, passed_over)
            except asyncpg.UniqueViolationError:
                continue  # another replica took another run of this workspace just now
            metrics.LEASE_EXPIRIES.inc(expired)
            return run
        return None

    async def _take(
        self, max_attempts: int, least_priority: int, passed_over: int
    ) -> tuple[Run | None, int]:
        """Returns the run that was taken, and how many were found whose owner had stopped."""
        expired = 0
        async with self._database.transaction() as connection:
            while (run := await lock_next(connection, least_priority, passed_over)) is not None:
                expired += run.state in OWNED_RUN_STATES
                if run.state is RunState.PAUSING:
                    await settle_pause(connection, run)
                elif run.attempt >= max_attempts:
                    await end_stale(connection, run)
                else:
                    break
            if run is None:
                return None, expired
            await take_over(connection, run, self._owner, self._lease_seconds)
            row = await connection.fetchrow(
                f"{SELECT_RUNS} WHERE r.workspace_id = $1 AND r.id = $2", run.workspace_id, run.id
            )
        assert row is not None
        return run_of(row), expired

    async def beat(self, run: Run) -> RunWishes:
        """Prolongs the lease of a run and of its nodes; returns what is asked of the run.

        Raises:
            RunOwnershipLostError: another replica took the run.
        """
        async with self._database.connection() as connection:
            wishes = await run_progress.beat(connection, run, self._owner, self._lease_seconds)
        if wishes is None:
            raise lost(run)
        return wishes

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
        await run_progress.record_outcomes(connection, run, list(outcomes))
        state = await run_progress.add(connection, run, counters, stage_seconds or {})
        if state is None:
            raise lost(run)
        self.on_state(run.id, state)

    async def nodes_total(self, connection: Connection, run: Run) -> int:
        """Returns how many nodes a run has counted, as the caller's transaction sees it."""
        return await run_progress.nodes_total(connection, run)

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

    async def cover_paths(self, run: Run, paths: Sequence[str]) -> None:
        """Puts the nodes of files into the run's scope, and counts them.

        Raises:
            RunOwnershipLostError: another replica took the run; nothing was changed.
        """
        async with self._database.transaction() as connection:
            counters = await run_scope.cover_paths(connection, run, paths)
            await self.add(connection, run, counters)

    async def cover_files(
        self, connection: Connection, run: Run, files: Sequence[FileId]
    ) -> RunCounters:
        """Puts the nodes of parsed files into the run's scope, in the caller's transaction.

        Returns what is to be counted. The caller adds it, and so finds out a lost run.
        """
        return await run_scope.cover_files(connection, run, files)

    async def put_back_marked(self, run: Run, model_id: ModelId) -> None:
        """Sends nodes that a check marked back to the queue, into the scope of a repair run.

        Those whose vector of a model beside the active one is marked wait for that model, whose
        own run makes it anew.

        Raises:
            RunOwnershipLostError: another replica took the run; nothing was changed.
        """
        async with self._database.transaction() as connection:
            await lock_workspace(connection, run.workspace_id)
            nodes = await marks.put_back(connection, run.workspace_id, model_id)
            for beside in await model_marks.put_back(connection, run.workspace_id, model_id):
                await run_models.queue(connection, run.workspace_id, beside)
            await run_scope.give_nodes(connection, run.workspace_id, run.id, nodes)
            await self.rebase(connection, run)

    async def finish_scan(
        self, run: Run, skipped_by_reason: Mapping[str, int], warnings: Sequence[str]
    ) -> None:
        """Records that the list of files is complete. Raises RunOwnershipLostError."""
        shown = list(warnings[:_MOST_WARNINGS])
        if len(warnings) > _MOST_WARNINGS:
            shown.append(f"{len(warnings) - _MOST_WARNINGS} more warnings are not shown.")
        async with self._database.connection() as connection:
            held = await run_progress.change(
                connection,
                run,
                "scan_finished = true, phase = 'parse', skipped_by_reason = $4::jsonb, "
                "warnings = warnings || $5::text[]",
                json.dumps(dict(skipped_by_reason)),
                shown,
            )
        if not held:
            raise lost(run)

    async def finish_plan(self, run: Run) -> None:
        """Records that every node is known. Raises RunOwnershipLostError."""
        async with self._database.transaction() as connection:
            held = await run_progress.change(
                connection, run, "nodes_total_final = true, phase = 'embed'"
            )
            if not held:
                raise lost(run)
            if run.is_scoped:
                await run_scope.set_baseline(connection, run)

    async def hold(self, connection: Connection, run: Run) -> None:
        """Locks the run's row until the transaction ends. Raises RunOwnershipLostError."""
        held = await connection.fetchval(
            f"SELECT true FROM runs WHERE {HELD} FOR UPDATE", *key_of(run)
        )
        if not held:
            raise lost(run)

    async def warn(self, connection: Connection, run: Run, warning: str) -> None:
        """Adds a warning, in the caller's transaction. Raises RunOwnershipLostError."""
        if not await run_progress.change(
            connection, run, "warnings = warnings || $4::text", warning
        ):
            raise lost(run)

    async def rebase(self, connection: Connection, run: Run) -> None:
        """Counts the nodes anew, inside the caller's transaction. Raises RunOwnershipLostError."""
        await self.hold(connection, run)
        await run_scope.set_baseline(connection, run)

    async def release(self, run: Run, *, left: bool = False) -> None:
        """Puts a run back for another owner, as one that was never taken now.

        It is paused when that was asked for, else it waits in the queue; one that is being
        cancelled ends. Its nodes go back without burning an attempt. Does nothing when the run was
        lost.

        Args:
            run: the run as it was taken.
            left: whether it could not go on: then it burns an attempt, so that one that never can
                comes to an end. A run that embedded something meanwhile has none behind it.
        """
        async with self._database.transaction() as connection:
            await lock_workspace(connection, run.workspace_id)
            row = await connection.fetchrow(
                f"{SELECT_RUNS} WHERE r.workspace_id = $1 AND r.id = $2 FOR UPDATE OF r",
                run.workspace_id,
                run.id,
            )
            if row is None or row["fence"] != run.fence or row["owner"] is None:
                return
            if row["state"] == RunState.CANCELLING:
                await end_run(connection, run_of(row), None)
            elif await run_progress.release(connection, run, left=left):
                await release_nodes(connection, run)

    async def finish(self, run: Run, failure: Failure | None) -> RunState:
        """Ends a run: its state and final counts are read from the tables, in one transaction.

        Raises:
            RunOwnershipLostError: another replica took the run.
        """
        async with self._database.transaction() as connection:
            await lock_workspace(connection, run.workspace_id)
            await self.hold(connection, run)
            row = await connection.fetchrow(
                f"{SELECT_RUNS} WHERE r.workspace_id = $1 AND r.id = $2", run.workspace_id, run.id
            )
            assert row is not None
            state = await end_run(connection, run_of(row), failure)
            if run.model_id is None:
                await run_models.queue_left(connection, run.workspace_id)
        return state

    async def interrupt(
        self, connection: Connection, workspace_id: WorkspaceId, model_id: ModelId | None = None
    ) -> None:
        """Puts what is at work back in the queue: what it holds goes back, its owner is fenced out.

        Args:
            connection: inside a transaction that holds the workspace's models.
            workspace_id: the workspace.
            model_id: runs of this model alone; None takes all.
        """
        await run_models.interrupt(connection, workspace_id, model_id)

    async def end_model_runs(
        self, connection: Connection, workspace_id: WorkspaceId, model_id: ModelId
    ) -> None:
        """Cancels the runs of a model that nobody works on, in the caller's transaction."""
        for run in await run_models.unfinished(connection, workspace_id, model_id):
            await run_wishes.cancel(connection, run)

    async def queue_model_run(
        self, connection: Connection, workspace_id: WorkspaceId, model_id: ModelId | None
    ) -> None:
        """Queues a run that embeds what waits, unless one waits; at low priority for a model."""
        await run_models.queue(connection, workspace_id, model_id)

    async def lock_workspace(self, connection: Connection, workspace_id: WorkspaceId) -> None:
        """Lets nobody else queue or end a run of a workspace until the transaction ends."""
        await lock_workspace(connection, workspace_id)

    async def queue_embedding(
        self, connection: Connection, workspace_id: WorkspaceId, model_id: ModelId | None
    ) -> Run:
        """Returns a queued run that embeds what waits, also what comes to wait in the transaction.

        Inside the caller's transaction, which has the workspace locked. Raises OverloadedError.
        """
        return await run_models.queue_behind(connection, workspace_id, model_id)

    async def forget_old(self, rules: RetentionRules) -> int:
        """Removes a bounded number of rows that need not be kept; returns how many.

        They are of finished runs, and of what is cached of models that no workspace has any more.
        """
        async with self._database.transaction() as connection:
            removed = await run_retention.forget_old(connection, rules)
        async with self._database.transaction() as connection:
            removed += await run_retention.forget_cached(connection, rules)
        metrics.UPKEEP_ROWS.inc(removed)
        return removed


def lost(run: Run) -> RunOwnershipLostError:
    """Counts a write that its fence refused; returns the error of an owner that is one no more."""
    metrics.FENCED_WRITES.inc()
    return RunOwnershipLostError(
        "Another replica owns this run now.", metadata={"resource": run.name}
    )
