"""Who watches which live workspace: a lease with a fence each, by the database's clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.indexer.errors import LeaseLostError
from services.indexer.model import Tree, WatchState, WorkspaceId
from services.indexer.run_spec import IfRunning
from services.indexer.storage.run_rows import held_up
from services.indexer.transitions import FINISHED_RUN_STATES

if TYPE_CHECKING:
    from collections.abc import Collection
    from uuid import UUID

    from services.indexer.ledger import RunLedger
    from services.indexer.run import Run
    from services.indexer.run_spec import RunSpec
    from services.indexer.storage.database import Connection, Database

TAKE = """
UPDATE workspace_watches h SET owner = $1,
  lease_until = clock_timestamp() + make_interval(secs => $2),
  fence = nextval('fences'), state = 'waiting'
FROM workspaces w
WHERE w.id = h.workspace_id AND h.workspace_id IN (
  SELECT workspace_id FROM workspace_watches WHERE lease_until < now()
  ORDER BY lease_until LIMIT $3 FOR UPDATE SKIP LOCKED)
RETURNING h.workspace_id, h.fence, h.resume_token, h.last_run, w.name, w.root, w.directory,
  extract(epoch FROM now() - h.reconciled_at)::float8 AS reconciled
"""
_BEAT = """
UPDATE workspace_watches h SET lease_until = clock_timestamp() + make_interval(secs => $2)
FROM unnest($3::int[], $4::bigint[]) v (workspace_id, fence)
WHERE h.workspace_id = v.workspace_id AND h.fence = v.fence AND h.owner = $1
RETURNING h.workspace_id, h.fence
"""
_HELD = "workspace_id = $1 AND fence = $2 AND owner IS NOT NULL"
_RELEASE = f"""
UPDATE workspace_watches SET owner = NULL, lease_until = '-infinity', state = 'waiting'
WHERE {_HELD}
"""
_QUEUED = f"""
UPDATE workspace_watches SET last_run = $3, resume_token = $4 WHERE {_HELD} RETURNING true
"""
_STATE = f"UPDATE workspace_watches SET state = $3 WHERE {_HELD}"
_FORGET_TOKEN = f"UPDATE workspace_watches SET resume_token = '' WHERE {_HELD}"
_ENDED = """
UPDATE workspace_watches h SET
  reconciled_at = CASE WHEN r.trigger = 'reconcile' THEN r.finished_at ELSE h.reconciled_at END,
  fresh_at = CASE WHEN r.changed_at IS NULL THEN h.fresh_at ELSE r.finished_at END,
  freshness_seconds = coalesce(
    extract(epoch FROM r.finished_at - r.changed_at)::float8, h.freshness_seconds)
FROM runs r
WHERE h.workspace_id = $1 AND h.fence = $2 AND h.owner IS NOT NULL
  AND r.workspace_id = $1 AND r.id = $3
"""
WHOLE_UNFINISHED = f"""
SELECT EXISTS (SELECT 1 FROM runs r WHERE workspace_id = $1 AND finished_at IS NULL
  AND mode NOT IN ('scoped', 'repair') AND model_id IS NULL AND id <> $2 AND state <> 'paused'
  AND NOT (state = 'queued' AND {held_up("r")}))
"""
"""Which loses work to each run that goes before it, as its scan begins again. One of a model beside
the active one loses none, and one that a paused one holds up cannot be taken."""

LOOK_WAITS = """
SELECT EXISTS (SELECT 1 FROM runs WHERE workspace_id = $1 AND finished_at IS NULL
  AND model_id IS NULL AND (mode NOT IN ('scoped', 'repair') OR state = 'paused'))
"""
"""Runs of models beside the active one look at no file, and a look goes before them."""


@dataclass(frozen=True, slots=True)
class Watch:
    """The lease of a live workspace, as it was taken."""

    workspace_id: WorkspaceId
    workspace_name: str
    tree: Tree
    fence: int
    resume_token: str
    """Of io: changes up to it are in runs that are queued; empty when a look is needed first."""
    last_run: UUID | None
    """The run that was queued last; the changes of one that failed are in no other."""
    reconciled_seconds: float | None
    """Time since the last look through the whole tree; None when there was none."""


class WatchStore:
    """Takes, prolongs and gives back watches, and writes what becomes of them under their fence."""

    def __init__(self, database: Database, owner: UUID, lease_seconds: float) -> None:
        self._database = database
        self._owner = owner
        self._lease_seconds = lease_seconds

    async def take(self, limit: int) -> list[Watch]:
        """Takes live workspaces that nobody watches, or whose watcher stopped beating."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(TAKE, self._owner, self._lease_seconds, limit)
        return [
            Watch(
                workspace_id=WorkspaceId(row["workspace_id"]),
                workspace_name=row["name"],
                tree=Tree(row["root"], row["directory"]),
                fence=row["fence"],
                resume_token=row["resume_token"],
                last_run=row["last_run"],
                reconciled_seconds=row["reconciled"],
            )
            for row in rows
        ]

    async def beat(self, watches: Collection[Watch]) -> set[tuple[WorkspaceId, int]]:
        """Prolongs leases; returns workspace and fence of those that are still held."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                _BEAT,
                self._owner,
                self._lease_seconds,
                [watch.workspace_id for watch in watches],
                [watch.fence for watch in watches],
            )
        return {(WorkspaceId(row["workspace_id"]), row["fence"]) for row in rows}

    async def release(self, watch: Watch) -> None:
        """Gives a watch back, so that another replica may take it at once."""
        await self._execute(_RELEASE, watch)

    async def set_state(self, watch: Watch, state: WatchState) -> None:
        """Writes how the watch is; no effect for one that was lost."""
        await self._execute(_STATE, watch, state)

    async def forget_token(self, watch: Watch) -> None:
        """Makes the next watcher look through the tree first; no effect for a lost watch."""
        await self._execute(_FORGET_TOKEN, watch)

    async def queue_run(
        self, watch: Watch, ledger: RunLedger, request_id: UUID, spec: RunSpec, resume_token: str
    ) -> Run:
        """Queues a run and remembers up to where changes are in runs, in one transaction.

        Raises:
            LeaseLostError: another replica watches, or nobody is to; nothing was queued.
            NotFoundError: the workspace was deleted.
            OverloadedError: too many runs of the workspace wait.
        """
        async with self._database.transaction() as connection:
            # First the workspace, which this locks, then the watch: as whoever turns it off.
            run, _ = await ledger.queue(
                connection, watch.workspace_id, request_id, spec, IfRunning.QUEUE
            )
            held = await connection.fetchval(
                _QUEUED, watch.workspace_id, watch.fence, run.id, resume_token
            )
            if not held:
                raise LeaseLostError(
                    "Another replica watches this workspace now.",
                    metadata={"resource": f"workspaces/{watch.workspace_name}"},
                )
        return run

    async def note_end(self, watch: Watch, run: Run) -> None:
        """Writes when the tree was looked through, and how fresh the index was, from a run."""
        assert run.state in FINISHED_RUN_STATES
        await self._execute(_ENDED, watch, run.id)

    async def has_whole_run(self, watch: Watch, besides: UUID) -> bool:
        """Returns whether another run over the whole workspace waits or is at work."""
        return await self._holds(WHOLE_UNFINISHED, watch.workspace_id, besides)

    async def look_waits(self, watch: Watch) -> bool:
        """Returns whether a look through the tree would wait: for one that is made, or a pause."""
        return await self._holds(LOOK_WAITS, watch.workspace_id)

    async def _holds(self, sql: str, *arguments: object) -> bool:
        async with self._database.connection() as connection:
            return bool(await connection.fetchval(sql, *arguments))

    async def _execute(self, sql: str, watch: Watch, *more: object) -> None:
        async with self._database.connection() as connection:
            await connection.execute(sql, watch.workspace_id, watch.fence, *more)


async def set_watched(connection: Connection, workspace_id: int, *, live: bool) -> None:
    """Lets a workspace be watched, or ends that, inside the caller's transaction."""
    if live:
        sql = "INSERT INTO workspace_watches (workspace_id) VALUES ($1) ON CONFLICT DO NOTHING"
    else:
        sql = "DELETE FROM workspace_watches WHERE workspace_id = $1"
    await connection.execute(sql, workspace_id)
