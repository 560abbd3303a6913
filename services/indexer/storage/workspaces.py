"""Workspaces and the models that their vectors come from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.indexer.model import (
    EmbedModel,
    ModelId,
    RegisteredModel,
    Tree,
    WatchState,
    WatchStatus,
    Workspace,
    WorkspaceId,
)
from services.indexer.storage import watches
from services.indexer.storage.database import retry_transient
from services.indexer.storage.model_rows import LONGEST_SECONDS, hold_models
from services.indexer.storage.model_switch import drop, switch, take_in
from services.indexer.storage.partitions import PARTITIONED, add_partition, vectors_ddl
from services.indexer.storage.workspace_models import model_of
from services.runtime.access import visible_workspaces
from services.runtime.errors import AlreadyExistsError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import asyncpg

    from services.indexer.ledger import RunLedger
    from services.indexer.run import Run
    from services.indexer.storage.database import Database

_SELECT = """
SELECT w.*, m.name AS model_name, m.fingerprint, m.dimensions, m.max_tokens,
  h.reconciled_at, h.fresh_at, h.freshness_seconds,
  CASE WHEN h.lease_until >= now() THEN h.state ELSE 'waiting' END AS watch_state
FROM workspaces w LEFT JOIN models m ON m.id = w.active_model_id
LEFT JOIN workspace_watches h ON h.workspace_id = w.id
"""
PAGE = f"""
{_SELECT} WHERE w.name > $1 AND ($3::text[] IS NULL OR w.name LIKE ANY ($3))
ORDER BY w.name LIMIT $2
"""


class WorkspaceStore:
    """Reads and writes workspaces."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(
        self, name: str, tree: Tree, display_name: str, *, live: bool = False
    ) -> tuple[Workspace, bool]:
        """Returns the workspace and whether this call made it; one that was there stays as it is.

        Raises:
            AlreadyExistsError: the name is taken by a workspace of another tree.
        """
        async with self._database.transaction() as connection:
            workspace_id = await connection.fetchval(
                """
                INSERT INTO workspaces (name, root, directory, display_name, live)
                VALUES ($1, $2, $3, $4, $5) ON CONFLICT (name) DO NOTHING RETURNING id
                """,
                name,
                tree.root,
                tree.directory,
                display_name,
                live,
            )
            if workspace_id is not None:
                for table in PARTITIONED:
                    await add_partition(connection, table, workspace_id)
                if live:
                    await watches.set_watched(connection, workspace_id, live=True)
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
        """Returns workspaces by name, those after a name; of the caller's alone."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(PAGE, after, limit, visible_workspaces())
        return [_workspace(row) for row in rows]

    async def update(self, name: str, *, live: bool | None, display_name: str | None) -> Workspace:
        """Changes what is not None, and returns the workspace. Raises NotFoundError."""
        async with self._database.transaction() as connection:
            workspace_id = await connection.fetchval(
                """
                UPDATE workspaces SET live = coalesce($2, live),
                  display_name = coalesce($3, display_name) WHERE name = $1 RETURNING id
                """,
                name,
                live,
                display_name,
            )
            if workspace_id is not None and live is not None:
                await watches.set_watched(connection, workspace_id, live=live)
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
            models = await connection.fetch("SELECT id FROM models ORDER BY id")
            # Dropped before the rows they point to, so that no cascade walks them one by one.
            for table in PARTITIONED:
                await connection.execute(f"DROP TABLE IF EXISTS {table}_w{int(workspace_id)}")
            for row in models:
                await drop(connection, workspace_id, row["id"])
            await connection.execute(
                "DELETE FROM workspaces WHERE id = $1", workspace_id, timeout=LONGEST_SECONDS
            )
            # After all who had its nodes or its row locked: they are the ones who write these.
            for table in ("term_postings", "term_changes", "queue_holds"):
                await connection.execute(
                    f"DELETE FROM {table} WHERE workspace_id = $1", workspace_id
                )

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
        return model_of(row)

    async def register_model(self, model: EmbedModel) -> RegisteredModel:
        """Returns the model's row, made with a table of vectors when its fingerprint is new.

        It has the name by which the model is served now: searches ask for it by that.
        """
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                "SELECT * FROM models WHERE fingerprint = $1", model.fingerprint
            )
        if row is not None and row["name"] == model.name:
            return model_of(row)
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
        return model_of(row)

    async def activate(
        self, run: Run, model: RegisteredModel, ledger: RunLedger, warning: str = ""
    ) -> None:
        """Puts a model in the place of the workspace's: it is embedded with it and searched by it.

        Nodes that it has no vector of go back to the queue; what the cache holds costs no forward.
        The vectors of the model until now are dropped: nobody serves it any more.

        Raises:
            RunOwnershipLostError: another replica took the run; nothing was changed.
        """
        async with self._database.transaction() as connection:
            current = await hold_models(connection, run.workspace_id)
            if current == model.id:
                return
            await ledger.hold(connection, run)
            await take_in(connection, run.workspace_id, model.id)
            await ledger.end_model_runs(connection, run.workspace_id, model.id)
            await switch(connection, run.workspace_id, None, model.id)
            if current is not None:
                await drop(connection, run.workspace_id, current)
            if warning:
                await ledger.warn(connection, run, warning)
            await ledger.rebase(connection, run)


def _workspace(row: asyncpg.Record) -> Workspace:
    return Workspace(
        id=WorkspaceId(row["id"]),
        name=row["name"],
        tree=Tree(row["root"], row["directory"]),
        display_name=row["display_name"],
        live=row["live"],
        active_model=_active_model(row),
        model_chosen=row["model_chosen"],
        last_run_id=row["last_run_id"],
        created_at=row["created_at"],
        watch=_watch_status(row) if row["live"] else None,
    )


def _active_model(row: asyncpg.Record) -> RegisteredModel | None:
    if row["active_model_id"] is None:
        return None
    return RegisteredModel(
        id=ModelId(row["active_model_id"]),
        name=row["model_name"],
        fingerprint=row["fingerprint"],
        dimensions=row["dimensions"],
        max_tokens=row["max_tokens"],
    )


def _watch_status(row: asyncpg.Record) -> WatchStatus:
    return WatchStatus(
        state=WatchState(row["watch_state"]),
        reconciled_at=row["reconciled_at"],
        fresh_at=row["fresh_at"],
        freshness_seconds=row["freshness_seconds"],
    )
