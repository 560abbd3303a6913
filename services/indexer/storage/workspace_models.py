"""The models of a workspace side by side: added, listed with their progress, switched, removed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.indexer.model import ModelId, RegisteredModel, WorkspaceModel
from services.indexer.storage.database import retry_transient
from services.indexer.storage.model_rows import (
    LONGEST_SECONDS,
    find_model,
    hold_models,
    no_model,
    require_model,
)
from services.indexer.storage.model_switch import drop, switch, take_in, would_be_lost
from services.indexer.storage.partitions import vectors_table
from services.runtime.errors import StateConflictError

if TYPE_CHECKING:
    import asyncpg

    from services.indexer.ledger import RunLedger
    from services.indexer.model import Workspace
    from services.indexer.storage.database import Connection, Database

_SELECT = """
SELECT m.*, w.created_at AS added_at, m.id = s.active_model_id AS active,
  (SELECT count(*) FROM nodes n WHERE n.workspace_id = $1) AS total
FROM workspace_models w JOIN models m ON m.id = w.model_id
JOIN workspaces s ON s.id = w.workspace_id
WHERE w.workspace_id = $1
"""
_PAGE = f"{_SELECT} AND m.id > $2 ORDER BY m.id LIMIT $3"
_BESIDE = """
SELECT m.* FROM workspace_models w JOIN models m ON m.id = w.model_id
JOIN workspaces s ON s.id = w.workspace_id
WHERE w.workspace_id = $1 AND m.id IS DISTINCT FROM s.active_model_id ORDER BY m.id
"""
_LEFT = {
    True: """
SELECT count(*) FILTER (WHERE status = 'failed') AS failed,
  count(*) FILTER (WHERE status <> 'failed') AS pending FROM (
  SELECT status FROM nodes WHERE workspace_id = $1 AND status = 'pending'
  UNION ALL SELECT status FROM nodes WHERE workspace_id = $1 AND status = 'processing'
  UNION ALL SELECT status FROM nodes WHERE workspace_id = $1 AND status = 'failed') n
WHERE $2::int IS NOT NULL
""",
    False: """
SELECT count(*) FILTER (WHERE status = 'failed') AS failed,
  count(*) FILTER (WHERE status <> 'failed') AS pending
FROM model_nodes WHERE workspace_id = $1 AND model_id = $2
""",
}
_SPEED = """
SELECT forwards / nullif(extract(epoch FROM finished_at - started_at), 0)::float8
FROM (SELECT * FROM runs WHERE workspace_id = $1 ORDER BY seq DESC LIMIT 200) r
WHERE forwards > 0 AND finished_at IS NOT NULL AND (model_id = $2
  OR $3::boolean AND model_id IS NULL
    AND finished_at > (SELECT switched_at FROM workspaces WHERE id = $1))
ORDER BY seq DESC LIMIT 1
"""
"""Of the newest runs the last one with the model; those over files are with the active one."""

_TRY_AGAIN = """
UPDATE model_nodes SET status = 'pending', attempt = 0, crash_count = 0, available_at = now(),
  error_reason = NULL, error_message = NULL, updated_at = now(), status_since = now()
WHERE workspace_id = $1 AND model_id = $2 AND status = 'failed'
"""


class WorkspaceModels:
    """Adds, lists, activates and removes models of a workspace."""

    def __init__(self, database: Database, ledger: RunLedger) -> None:
        self._database = database
        self._ledger = ledger

    async def add(self, workspace: Workspace, model: RegisteredModel) -> WorkspaceModel:
        """Lets every node wait for a model beside the active one, and queues a run that embeds it.

        Idempotent; what failed with it is tried again.

        Raises:
            StateConflictError: the workspace was never indexed.
            OverloadedError: too many of its runs wait.
        """

        async def work() -> None:
            async with self._database.transaction() as connection:
                active = await hold_models(connection, workspace.id)
                if active is None:
                    raise StateConflictError(
                        f"Workspace {workspace.name} has not been indexed yet.",
                        metadata={"state": "empty", "allowed": "indexed"},
                    )
                if active == model.id:
                    return
                if not await take_in(connection, workspace.id, model.id):
                    retried = await connection.execute(
                        _TRY_AGAIN, workspace.id, model.id, timeout=LONGEST_SECONDS
                    )
                    if retried != "UPDATE 0":
                        await self._ledger.queue_embedding(connection, workspace.id, model.id)
                        return
                await self._ledger.queue_model_run(connection, workspace.id, model.id)

        await retry_transient(work)
        return await self.get(workspace, model.id)

    async def activate(
        self, workspace: Workspace, model_id: ModelId, *, force: bool
    ) -> WorkspaceModel:
        """Switches search over to a model, in one transaction; the one until now stays beside it.

        A run at work begins again with the new model: what it has in flight is refused. No run puts
        another model in the place of one that was chosen so.

        Raises:
            StateConflictError: search would lose nodes that the model has no vector of.
            NotFoundError: the model is none of the workspace's.
        """

        async def work() -> None:
            async with self._database.transaction() as connection:
                await self._switch(connection, workspace, model_id, force=force)

        await retry_transient(work)
        return await self.get(workspace, model_id)

    async def _switch(
        self, connection: Connection, workspace: Workspace, model_id: ModelId, *, force: bool
    ) -> None:
        active = await hold_models(connection, workspace.id)
        await require_model(connection, workspace.id, model_id)
        if active != model_id:
            lost = await would_be_lost(connection, workspace.id, model_id)
            if lost and not force:
                raise StateConflictError(
                    f"Search would lose {lost} nodes that the model has no vector of yet.",
                    metadata={"state": f"{lost} nodes to embed", "allowed": "0 nodes to embed"},
                )
            await self._ledger.interrupt(connection, workspace.id)
            await self._ledger.end_model_runs(connection, workspace.id, model_id)
            await switch(connection, workspace.id, active, model_id)
            if lost:
                await self._ledger.queue_model_run(connection, workspace.id, None)
        await connection.execute(
            "UPDATE workspaces SET model_chosen = true WHERE id = $1", workspace.id
        )

    async def remove(self, workspace: Workspace, model_id: ModelId) -> None:
        """Drops a model's vectors and queue; its runs end cancelled.

        Raises:
            StateConflictError: search uses the model.
            NotFoundError: the model is none of the workspace's.
        """

        async def work() -> None:
            async with self._database.transaction() as connection:
                active = await hold_models(connection, workspace.id)
                await require_model(connection, workspace.id, model_id)
                if active == model_id:
                    raise StateConflictError(
                        "Search uses this model; activate another one first.",
                        metadata={"state": "active", "allowed": "not active"},
                    )
                await self._ledger.interrupt(connection, workspace.id, model_id)
                await self._ledger.end_model_runs(connection, workspace.id, model_id)
                await drop(connection, workspace.id, model_id)

        await retry_transient(work)

    async def find(self, workspace: Workspace, name: str, fingerprint: str = "") -> ModelId:
        """Returns a model of the workspace by its name, and the beginning of its fingerprint.

        Of several with one name, which were other weights, it is the newest that is not active.

        Raises:
            NotFoundError: the workspace has none.
        """
        async with self._database.connection() as connection:
            return await find_model(connection, workspace.id, name, fingerprint)

    async def get(self, workspace: Workspace, model_id: ModelId) -> WorkspaceModel:
        """Returns one model of a workspace. Raises NotFoundError."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(f"{_SELECT} AND m.id = $2", workspace.id, model_id)
            if row is None:
                raise no_model(str(model_id))
            return await _counted(connection, workspace, row)

    async def page(self, workspace: Workspace, after: int, limit: int) -> list[WorkspaceModel]:
        """Returns models in the order in which they became known, those after an id."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(_PAGE, workspace.id, after, limit)
            return [await _counted(connection, workspace, row) for row in rows]

    async def beside(self, workspace: Workspace) -> list[RegisteredModel]:
        """Returns the models that search does not use, in the order in which they became known."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(_BESIDE, workspace.id)
        return [model_of(row) for row in rows]


async def _counted(
    connection: Connection, workspace: Workspace, row: asyncpg.Record
) -> WorkspaceModel:
    active = bool(row["active"])
    left = await connection.fetchrow(_LEFT[active], workspace.id, row["id"])
    assert left is not None
    size = await connection.fetchval(
        "SELECT pg_total_relation_size(to_regclass($1))",
        f"{vectors_table(row['id'])}_w{int(workspace.id)}",
    )
    speed = await connection.fetchval(_SPEED, workspace.id, row["id"], active)
    return WorkspaceModel(
        model=model_of(row),
        active=active,
        created_at=row["added_at"],
        nodes_total=row["total"],
        nodes_pending=left["pending"],
        nodes_failed=left["failed"],
        vector_bytes=size or 0,
        nodes_per_second=speed or 0.0,
    )


def model_of(row: asyncpg.Record) -> RegisteredModel:
    """Returns a model from its row."""
    return RegisteredModel(
        id=ModelId(row["id"]),
        name=row["name"],
        fingerprint=row["fingerprint"],
        dimensions=row["dimensions"],
        max_tokens=row["max_tokens"],
    )
