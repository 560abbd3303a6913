"""A workspace's models: found and held, and what waits for those beside the active one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.indexer.model import ModelId
from services.runtime.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from services.indexer.model import NodeId, WorkspaceId
    from services.indexer.storage.database import Connection

LONGEST_SECONDS = 600.0
"""Longest time of a statement that writes all nodes of a workspace: the time of others would end
it each time in a large one, and whoever begins again would do so for ever."""

_QUEUE_NEW = """
INSERT INTO model_nodes (workspace_id, model_id, node_id)
SELECT $1, m.model_id, n FROM workspace_models m JOIN workspaces w ON w.id = m.workspace_id,
  unnest($2::bigint[]) n
WHERE m.workspace_id = $1 AND m.model_id IS DISTINCT FROM w.active_model_id
ORDER BY m.model_id, n
"""
UNQUEUE = """
DELETE FROM model_nodes WHERE workspace_id = $1 AND node_id = ANY ($2)
  AND model_id IN (SELECT model_id FROM workspace_models WHERE workspace_id = $1)
"""
_QUEUE_ALL = """
INSERT INTO model_nodes (workspace_id, model_id, node_id)
SELECT $1, $2, id FROM nodes WHERE workspace_id = $1 ORDER BY id
"""
_NAMED = """
SELECT m.id FROM workspace_models w JOIN models m ON m.id = w.model_id
JOIN workspaces s ON s.id = w.workspace_id
WHERE w.workspace_id = $1 AND m.name = $2 AND starts_with(m.fingerprint, $3)
ORDER BY m.id = s.active_model_id, m.id DESC LIMIT 1
"""
"""Of several of one name, which were other weights, the newest that is not active."""


async def find_model(
    connection: Connection, workspace_id: WorkspaceId, name: str, fingerprint: str = ""
) -> ModelId:
    """Returns a model of a workspace by its name, and the beginning of its fingerprint.

    Of several with one name, which were other weights, it is the newest that is not active.

    Raises:
        NotFoundError: the workspace has none.
    """
    found = await connection.fetchval(_NAMED, workspace_id, name, fingerprint)
    if found is None:
        raise no_model(name)
    return ModelId(found)


async def require_model(
    connection: Connection, workspace_id: WorkspaceId, model_id: ModelId
) -> None:
    """Raises NotFoundError unless a model is one of the workspace's."""
    if not await connection.fetchval(
        "SELECT true FROM workspace_models WHERE workspace_id = $1 AND model_id = $2",
        workspace_id,
        model_id,
    ):
        name = await connection.fetchval("SELECT name FROM models WHERE id = $1", model_id)
        raise no_model(name or str(model_id))


def no_model(name: str) -> NotFoundError:
    """Returns what is told of a model that the workspace does not have."""
    return NotFoundError(
        f"The workspace has no model {name.removeprefix('models/')}.", metadata={"model": name}
    )


async def hold_node_set(connection: Connection, workspace_id: WorkspaceId) -> None:
    """Keeps the workspace's models as they are until the transaction ends.

    Whoever adds or removes nodes calls this before it locks anything else. Whoever adds, removes or
    switches models locks the row against it (`hold_models`), and so sees a set of nodes that stays.
    """
    await connection.execute("SELECT FROM workspaces WHERE id = $1 FOR KEY SHARE", workspace_id)


async def lock_workspace(connection: Connection, workspace_id: WorkspaceId) -> bool:
    """Locks a workspace's row against all who do so, but for those who hold its models alone.

    Whoever makes or ends a run does, before it locks the run's row; and whoever marks rows for a
    repair, or takes marks up. Returns whether the workspace is there.
    """
    found = await connection.fetchval(
        "SELECT true FROM workspaces WHERE id = $1 FOR NO KEY UPDATE", workspace_id
    )
    return found is not None


async def queue_for_models(
    connection: Connection, workspace_id: WorkspaceId, nodes: Iterable[NodeId]
) -> None:
    """Lets new nodes wait for the models beside the active one, too."""
    if ids := list(nodes):
        await connection.execute(_QUEUE_NEW, workspace_id, ids)


async def unqueue_for_models(
    connection: Connection, workspace_id: WorkspaceId, nodes: Sequence[NodeId]
) -> None:
    """Removes what nodes that go have in the queues of models."""
    await connection.execute(UNQUEUE, workspace_id, list(nodes))


async def hold_models(connection: Connection, workspace_id: WorkspaceId) -> ModelId | None:
    """Locks out whoever changes nodes or models of a workspace; returns its active model."""
    active: ModelId | None = await connection.fetchval(
        "SELECT active_model_id FROM workspaces WHERE id = $1 FOR UPDATE", workspace_id
    )
    return active


async def queue_all(connection: Connection, workspace_id: WorkspaceId, model_id: ModelId) -> None:
    """Lets every node of a workspace wait for a model that is new to it."""
    await connection.execute(_QUEUE_ALL, workspace_id, model_id, timeout=LONGEST_SECONDS)
