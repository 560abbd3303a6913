"""Workspaces and the models that their vectors come from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.indexer.model import (
    EmbedModel,
    ModelId,
    RegisteredModel,
    Tree,
    Workspace,
    WorkspaceId,
)
from services.indexer.storage.database import retry_transient
from services.indexer.storage.partitions import add_partition, vectors_ddl, vectors_table
from services.indexer.transitions import NodeStatus
from services.runtime.errors import AlreadyExistsError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import asyncpg

    from services.indexer.ledger import RunLedger
    from services.indexer.model import Run
    from services.indexer.storage.database import Connection, Database

_SELECT = """
SELECT w.*, m.name AS model_name FROM workspaces w LEFT JOIN models m ON m.id = w.active_model_id
"""


class WorkspaceStore:
    """Reads and writes workspaces."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, name: str, tree: Tree, display_name: str) -> tuple[Workspace, bool]:
        """Returns the workspace and whether this call made it.

        Raises:
            AlreadyExistsError: the name is taken by a workspace of another tree.
        """
        async with self._database.transaction() as connection:
            workspace_id = await connection.fetchval(
                """
                INSERT INTO workspaces (name, root, directory, display_name)
                VALUES ($1, $2, $3, $4) ON CONFLICT (name) DO NOTHING RETURNING id
                """,
                name,
                tree.root,
                tree.directory,
                display_name,
            )
            if workspace_id is not None:
                await add_partition(connection, "node_terms", workspace_id)
        workspace = await self.get(name)
        if workspace.tree != tree:
            raise AlreadyExistsError(
                f"Workspace {name} exists and has another folder.",
                metadata={"resource": f"workspaces/{name}"},
            )
        return workspace, workspace_id is not None

    async def get(self, name: str) -> Workspace:
        """Returns a workspace. Raises NotFoundError."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(f"{_SELECT} WHERE w.name = $1", name)
        if row is None:
            raise NotFoundError(
                f"There is no workspace {name}.", metadata={"resource": f"workspaces/{name}"}
            )
        return _workspace(row)

    async def page(self, after: str, limit: int) -> list[Workspace]:
        """Returns workspaces by name, those after a name."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                f"{_SELECT} WHERE w.name > $1 ORDER BY w.name LIMIT $2", after, limit
            )
        return [_workspace(row) for row in rows]

    async def update(self, name: str, *, live: bool | None, display_name: str | None) -> Workspace:
        """Changes what is not None, and returns the workspace. Raises NotFoundError."""
        async with self._database.connection() as connection:
            await connection.execute(
                """
                UPDATE workspaces SET live = coalesce($2, live),
                  display_name = coalesce($3, display_name) WHERE name = $1
                """,
                name,
                live,
                display_name,
            )
        return await self.get(name)

    async def delete(self, name: str) -> None:
        """Removes a workspace and all its rows. Raises NotFoundError."""
        workspace = await self.get(name)
        # Readers and writers lock the same tables in other orders: who meets one tries again.
        await retry_transient(lambda: self._delete(workspace.id))

    async def _delete(self, workspace_id: WorkspaceId) -> None:
        async with self._database.transaction() as connection:
            # Held first: a run that activates its model meanwhile would make a partition behind it.
            await connection.execute(
                "SELECT FROM workspaces WHERE id = $1 FOR UPDATE", workspace_id
            )
            models = await connection.fetch("SELECT id FROM models")
            # Dropped before the rows they point to, so that no cascade walks them one by one.
            for table in ("node_terms", *(vectors_table(row["id"]) for row in models)):
                await connection.execute(f"DROP TABLE IF EXISTS {table}_w{int(workspace_id)}")
            await connection.execute("DELETE FROM workspaces WHERE id = $1", workspace_id)

    async def count_nodes(self, workspace_id: WorkspaceId) -> tuple[int, Mapping[str, int]]:
        """Returns the number of indexed files, and of nodes by status."""
        async with self._database.connection() as connection:
            files = await connection.fetchval(
                "SELECT count(*) FROM files WHERE workspace_id = $1 AND state = 'indexed'",
                workspace_id,
            )
            rows = await connection.fetch(
                "SELECT status, count(*) AS n FROM nodes WHERE workspace_id = $1 GROUP BY status",
                workspace_id,
            )
        return files, {row["status"]: row["n"] for row in rows}

    async def model(self, model_id: ModelId) -> RegisteredModel:
        """Returns a registered model."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow("SELECT * FROM models WHERE id = $1", model_id)
        if row is None:
            raise NotFoundError("There is no such model.", metadata={"resource": str(model_id)})
        return _model(row)

    async def register_model(self, model: EmbedModel) -> RegisteredModel:
        """Returns the model's row, made with a table of vectors when its fingerprint is new."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                "SELECT * FROM models WHERE fingerprint = $1", model.fingerprint
            )
        if row is not None:
            return _model(row)
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(
                """
                INSERT INTO models (name, fingerprint, dimensions, max_tokens)
                VALUES ($1, $2, $3, $4)
                ON CONFLICT (fingerprint) DO UPDATE SET name = excluded.name RETURNING *
                """,
                model.name,
                model.fingerprint,
                model.dimensions,
                model.max_tokens,
            )
            assert row is not None
            await connection.execute(vectors_ddl(row["id"], model.dimensions))
        return _model(row)

    async def activate(self, run: Run, model: RegisteredModel, ledger: RunLedger) -> None:
        """Makes a model the one that the run's workspace is embedded with and searched by.

        Nodes of another model go back to the queue; what the cache holds costs no forward.

        Raises:
            RunOwnershipLostError: another replica took the run; nothing was changed.
        """
        async with self._database.transaction() as connection:
            current = await connection.fetchval(
                "SELECT active_model_id FROM workspaces WHERE id = $1 FOR NO KEY UPDATE",
                run.workspace_id,
            )
            if current == model.id:
                return
            await add_partition(connection, vectors_table(model.id), run.workspace_id)
            await connection.execute(
                "UPDATE workspaces SET active_model_id = $2 WHERE id = $1",
                run.workspace_id,
                model.id,
            )
            await _queue_all(connection, run.workspace_id)
            if current is not None:
                await connection.execute(
                    f"DROP TABLE IF EXISTS {vectors_table(current)}_w{int(run.workspace_id)}"
                )
            await ledger.rebase(connection, run)


async def _queue_all(connection: Connection, workspace_id: WorkspaceId) -> None:
    """Sends every node back to the queue; terms stand beside a vector or not at all."""
    await connection.execute("DELETE FROM node_terms WHERE workspace_id = $1", workspace_id)
    await connection.execute(
        """
        UPDATE nodes SET status = $2, attempt = 0, crash_count = 0, embedded_run = NULL,
          lease_owner = NULL, lease_until = NULL, error_reason = NULL, error_message = NULL,
          updated_at = now(), status_since = now() WHERE workspace_id = $1 AND status <> $2
        """,
        workspace_id,
        NodeStatus.PENDING,
    )


def _workspace(row: asyncpg.Record) -> Workspace:
    return Workspace(
        id=WorkspaceId(row["id"]),
        name=row["name"],
        tree=Tree(row["root"], row["directory"]),
        display_name=row["display_name"],
        live=row["live"],
        active_model_id=None if row["active_model_id"] is None else ModelId(row["active_model_id"]),
        active_model_name=row["model_name"],
        last_run_id=row["last_run_id"],
        created_at=row["created_at"],
    )


def _model(row: asyncpg.Record) -> RegisteredModel:
    return RegisteredModel(
        id=ModelId(row["id"]),
        name=row["name"],
        fingerprint=row["fingerprint"],
        dimensions=row["dimensions"],
        max_tokens=row["max_tokens"],
    )
