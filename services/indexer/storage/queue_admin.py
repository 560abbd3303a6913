"""The queue of nodes as an admin sees it: holds, counts, failures."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.indexer.errors import LeaseLostError
from services.indexer.model import Failure, ModelId, NodeId, WorkspaceId
from services.runtime.errors import LodestoneError, StateConflictError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from services.indexer.ledger import RunLedger
    from services.indexer.storage.database import Database

ALL_WORKSPACES = WorkspaceId(0)
"""Stands for all workspaces: no workspace has this id."""

_RETRY_BATCH_NODES = 1000

COUNTS = """
SELECT q.kind, q.status, coalesce(m.name, '') AS model, q.count, q.oldest FROM (
  SELECT kind, status, NULL::int AS model_id, count(*) AS count,
    extract(epoch FROM now() - min(status_since))::float8 AS oldest
  FROM nodes WHERE {of} GROUP BY kind, status
  UNION ALL
  SELECT n.kind, b.status, b.model_id, count(*),
    extract(epoch FROM now() - min(b.status_since))::float8
  FROM (SELECT * FROM model_nodes WHERE {of}) b
  JOIN nodes n ON n.workspace_id = b.workspace_id AND n.id = b.node_id
  GROUP BY n.kind, b.status, b.model_id) q
LEFT JOIN models m ON m.id = q.model_id ORDER BY model, q.kind, q.status
"""


def _queues(*statuses: str) -> str:
    """Returns what both queues have of some statuses, each of which has an index of its own.

    They are the nodes' own queue, of the active model, and those of models beside it.
    """
    return " UNION ALL ".join(
        f"SELECT status_since, lease_owner, lease_until FROM {table} "
        f"WHERE {{of}} AND status = '{status}'"
        for table in ("nodes", "model_nodes")
        for status in statuses
    )


WORKERS = f"""
SELECT lease_owner AS worker, count(*) AS count,
  count(*) FILTER (WHERE lease_until < now()) AS stale,
  extract(epoch FROM now() - min(status_since))::float8 AS oldest
FROM ({_queues("processing")}) q GROUP BY lease_owner ORDER BY 1
"""
UNFINISHED = """
SELECT state, count(*) AS count, extract(epoch FROM now() - min(created_at))::float8 AS oldest
FROM runs WHERE finished_at IS NULL AND {of} GROUP BY state ORDER BY state
"""
_HOLDS = """
SELECT kind, expires_at FROM queue_holds
WHERE workspace_id IN (0, $1) AND (expires_at IS NULL OR expires_at > now())
"""
LEFT = f"SELECT count(*) FROM ({_queues('pending', 'processing')}) q"
IN_FLIGHT = f"SELECT count(*) FROM ({_queues('processing')}) q"
_RETRY = """
UPDATE {table} SET status = 'pending', attempt = 0, crash_count = 0, available_at = now(),
  error_reason = NULL, error_message = NULL, updated_at = now(), status_since = now()
WHERE workspace_id = $1 {model} AND {id} = ANY (ARRAY(
  SELECT {id} FROM {table} WHERE workspace_id = $1 {model} AND status = 'failed' AND {id} > $2
  ORDER BY {id} LIMIT $3 FOR UPDATE))
RETURNING {id} AS id
"""
RETRY_ACTIVE = _RETRY.format(table="nodes", id="id", model="")
RETRY_BESIDE = _RETRY.format(table="model_nodes", id="node_id", model="AND model_id = $4")
FAILED_MODELS = """
SELECT w.model_id FROM workspace_models w WHERE w.workspace_id = $1 AND EXISTS (
  SELECT 1 FROM model_nodes q WHERE q.workspace_id = $1 AND q.model_id = w.model_id
    AND q.status = 'failed')
ORDER BY w.model_id
"""
FAILED_NODES = """
SELECT q.id, q.model_id, coalesce(m.name, '') AS model, f.path, q.qualified_name,
  q.error_reason, q.error_message, q.attempt
FROM (
  (SELECT id, 0 AS model_id, file_id, qualified_name, error_reason, error_message, attempt
  FROM nodes WHERE workspace_id = $1 AND status = 'failed' AND (id, 0) > ($2, $3)
    AND id >= $2 ORDER BY id LIMIT $4)
  UNION ALL
  (SELECT n.id, b.model_id, n.file_id, n.qualified_name, b.error_reason, b.error_message,
    b.attempt
  FROM (SELECT * FROM model_nodes
    WHERE workspace_id = $1 AND status = 'failed' AND (node_id, model_id) > ($2, $3)
    ORDER BY node_id, model_id LIMIT $4) b
  JOIN nodes n ON n.workspace_id = $1 AND n.id = b.node_id)) q
CROSS JOIN LATERAL (
  SELECT path FROM files WHERE workspace_id = $1 AND id = q.file_id OFFSET 0) f
LEFT JOIN models m ON m.id = q.model_id ORDER BY q.id, q.model_id LIMIT $4
"""
"""Reads a page: each queue by an index in the order of the list, then each file by its key."""

WAIT_FOR_CLAIMS = """
SELECT 1 FROM runs WHERE finished_at IS NULL AND {of}
ORDER BY workspace_id, id FOR UPDATE
"""
"""A claim locks its run's row for the time of its statement: one that began before a hold was
written is over afterwards, and later ones see the hold."""

_BEGIN_IMPORT = """
INSERT INTO queue_holds AS h (workspace_id, kind, lease_seconds, expires_at)
VALUES ($1, 'bulk_import', $2, clock_timestamp() + make_interval(secs => $2))
ON CONFLICT (workspace_id, kind) DO UPDATE SET token = excluded.token,
  lease_seconds = excluded.lease_seconds, expires_at = excluded.expires_at, created_at = now()
WHERE h.expires_at <= now()
RETURNING token, expires_at
"""
_RENEW_IMPORT = """
UPDATE queue_holds SET expires_at = clock_timestamp() + make_interval(secs => lease_seconds)
WHERE token = $1 AND kind = 'bulk_import' AND expires_at > now() RETURNING expires_at
"""
_END_IMPORT = """
DELETE FROM queue_holds WHERE token = $1 AND kind = 'bulk_import'
RETURNING expires_at > now() AS in_time
"""


@dataclass(frozen=True, slots=True)
class Count:
    """How many there are of one kind, and since when the oldest."""

    name: tuple[str, ...]
    count: int
    oldest_seconds: float
    stale: int = 0


@dataclass(frozen=True, slots=True)
class QueueStats:
    """What the queue holds."""

    nodes: Sequence[Count]
    """By kind, status and name of the model, which is empty for the active one."""
    workers: Sequence[Count]
    runs: Sequence[Count]
    """Unfinished ones by state."""
    on_hold: bool
    import_expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class FailedNode:
    """A node that failed for good."""

    id: NodeId
    path: str
    qualified_name: str
    failure: Failure
    attempts: int
    model_id: ModelId | None = None
    """The model that it failed with, where that is not the active one."""
    model_name: str = ""


@dataclass(frozen=True, slots=True)
class Retried:
    """What was put back of one model."""

    count: int
    run_name: str
    """The run that takes it up."""


@dataclass(frozen=True, slots=True)
class ImportLease:
    """Proves that its holder may import; over at a time of the database's clock."""

    token: UUID
    expires_at: datetime


def within(sql: str, workspace_id: WorkspaceId) -> str:
    """Returns a statement over a workspace, $1, or over all of them.

    Two statements: a plan that is kept for both reads each workspace's rows to find those of one.
    """
    return sql.format(of="$1::int = 0" if workspace_id == ALL_WORKSPACES else "workspace_id = $1")


class QueueAdmin:
    """Looks at the queue, holds it, and puts failed nodes back."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def stats(self, workspace_id: WorkspaceId) -> QueueStats:
        """Returns counts of a workspace or of all, as of about one moment."""
        async with self._database.connection() as connection:
            nodes = await connection.fetch(within(COUNTS, workspace_id), workspace_id)
            workers = await connection.fetch(within(WORKERS, workspace_id), workspace_id)
            runs = await connection.fetch(within(UNFINISHED, workspace_id), workspace_id)
            holds = await connection.fetch(_HOLDS, workspace_id)
        return QueueStats(
            [Count((r["kind"], r["status"], r["model"]), r["count"], r["oldest"]) for r in nodes],
            [Count((str(r["worker"]),), r["count"], r["oldest"], r["stale"]) for r in workers],
            [Count((r["state"],), r["count"], r["oldest"]) for r in runs],
            bool(holds),
            next((row["expires_at"] for row in holds if row["kind"] == "bulk_import"), None),
        )

    async def pause(self, workspace_id: WorkspaceId) -> None:
        """Stops claims until they are allowed again; pausing twice is pausing once."""
        async with self._database.connection() as connection:
            await connection.execute(
                "INSERT INTO queue_holds (workspace_id, kind) VALUES ($1, 'pause') "
                "ON CONFLICT DO NOTHING",
                workspace_id,
            )
            await connection.execute(within(WAIT_FOR_CLAIMS, workspace_id), workspace_id)

    async def resume(self, workspace_id: WorkspaceId) -> None:
        """Allows claims again."""
        async with self._database.connection() as connection:
            await connection.execute(
                "DELETE FROM queue_holds WHERE workspace_id = $1 AND kind = 'pause'", workspace_id
            )

    async def count_left(self, workspace_id: WorkspaceId, *, in_flight_only: bool = False) -> int:
        """Returns how many nodes wait or are in flight: each counts once for every such model."""
        sql = within(IN_FLIGHT if in_flight_only else LEFT, workspace_id)
        async with self._database.connection() as connection:
            return int(await connection.fetchval(sql, workspace_id))

    async def retry_failed(
        self, workspace_id: WorkspaceId, ledger: RunLedger
    ) -> dict[ModelId | None, Retried]:
        """Puts all failed nodes of a workspace back, in bounded steps, and queues a run for each.

        Returns what was put back for each model that had some; None stands for the active one, and
        is first.

        Raises:
            OverloadedError: too many runs of the workspace wait.
        """
        async with self._database.connection() as connection:
            rows = await connection.fetch(FAILED_MODELS, workspace_id)
        models = [None, *(ModelId(row["model_id"]) for row in rows)]
        put_back = {
            model: await self._retry_failed_of(workspace_id, model, ledger) for model in models
        }
        return {model: retried for model, retried in put_back.items() if retried is not None}

    async def _retry_failed_of(
        self, workspace_id: WorkspaceId, model_id: ModelId | None, ledger: RunLedger
    ) -> Retried | None:
        sql, model = (RETRY_ACTIVE, ()) if model_id is None else (RETRY_BESIDE, (model_id,))
        count, after, run = 0, 0, None
        while True:
            # A step has its run: whoever is stopped between two leaves no node that waits for none.
            async with self._database.transaction() as connection:
                await ledger.lock_workspace(connection, workspace_id)
                rows = await connection.fetch(sql, workspace_id, after, _RETRY_BATCH_NODES, *model)
                if not rows:
                    return None if run is None else Retried(count, run.name)
                run = await ledger.queue_embedding(connection, workspace_id, model_id)
            count += len(rows)
            after = max(row["id"] for row in rows)

    async def failed(
        self, workspace_id: WorkspaceId, after: tuple[int, int], limit: int
    ) -> list[FailedNode]:
        """Returns failed nodes, once for each model that they failed with.

        They come in order of their ids and of the models' ids, the active one's as 0: those after
        such a pair.
        """
        async with self._database.connection() as connection:
            rows = await connection.fetch(FAILED_NODES, workspace_id, *after, limit)
        return [
            FailedNode(
                NodeId(row["id"]),
                row["path"],
                row["qualified_name"],
                Failure(row["error_reason"], row["error_message"] or ""),
                row["attempt"],
                ModelId(row["model_id"]) if row["model_id"] else None,
                row["model"],
            )
            for row in rows
        ]

    async def begin_import(self, workspace_id: WorkspaceId, lease_seconds: float) -> ImportLease:
        """Holds the queue of a workspace for an import; one that fails holds nothing up.

        Raises:
            StateConflictError: another import has not ended, and its lease is not over.
        """
        async with self._database.connection() as connection:
            row = await connection.fetchrow(_BEGIN_IMPORT, workspace_id, lease_seconds)
        if row is None:
            raise StateConflictError(
                "Another bulk import of this workspace goes on.",
                metadata={"state": "importing", "allowed": "idle"},
            )
        lease = ImportLease(row["token"], row["expires_at"])
        try:
            async with self._database.connection() as connection:
                await connection.execute(within(WAIT_FOR_CLAIMS, workspace_id), workspace_id)
        except BaseException:
            # Nobody knows the token: without this, none could import for the time of the lease.
            with contextlib.suppress(LodestoneError):
                await asyncio.shield(self.end_import(lease.token))
            raise
        return lease

    async def renew_import(self, token: UUID) -> datetime:
        """Prolongs an import's lease; returns when it ends now. Raises LeaseLostError."""
        async with self._database.connection() as connection:
            expires_at: datetime | None = await connection.fetchval(_RENEW_IMPORT, token)
        if expires_at is None:
            raise _lost()
        return expires_at

    async def end_import(self, token: UUID) -> None:
        """Gives an import's lease back. Raises LeaseLostError when it was over before."""
        async with self._database.connection() as connection:
            if not await connection.fetchval(_END_IMPORT, token):
                raise _lost()


def _lost() -> LeaseLostError:
    return LeaseLostError("The lease of this bulk import is over: the queue resumed meanwhile.")
