"""A workspace's models: taken in, switched over, dropped; each inside the caller's transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.indexer.model import NodeId
from services.indexer.search.terms import name_terms
from services.indexer.storage.cache import adopt_cached
from services.indexer.storage.model_rows import LONGEST_SECONDS, queue_all
from services.indexer.storage.partitions import add_partition, vectors_table
from services.indexer.storage.term_changes import noted

if TYPE_CHECKING:
    from services.indexer.model import ModelId, WorkspaceId
    from services.indexer.storage.database import Connection

_PAGE_NODES = 1000

_TAKE_IN = """
INSERT INTO workspace_models (workspace_id, model_id) VALUES ($1, $2)
ON CONFLICT DO NOTHING RETURNING true
"""
_RELEASED = """
UPDATE models SET released_at = now() WHERE id = $1
  AND NOT EXISTS (SELECT 1 FROM workspace_models WHERE model_id = $1)
"""
_WOULD_BE_LOST = """
SELECT count(*) FROM model_nodes q
JOIN nodes n ON n.workspace_id = q.workspace_id AND n.id = q.node_id
WHERE q.workspace_id = $1 AND q.model_id = $2 AND n.status = 'embedded'
"""
_UNEMBEDDED = " UNION ALL ".join(
    "SELECT id, status, error_reason, error_message, error_stage FROM nodes "
    f"WHERE workspace_id = $1 AND status = '{status}'"
    for status in ("pending", "processing", "failed")
)
"""Each part has an index of its own."""

_QUEUE_FOR_OLD = f"""
INSERT INTO model_nodes (workspace_id, model_id, node_id, status, error_reason, error_message,
  error_stage)
SELECT $1, $2, id, CASE status WHEN 'failed' THEN 'failed' ELSE 'pending' END,
  error_reason, error_message, error_stage FROM ({_UNEMBEDDED}) u
"""
_FORGET_TERMS = f"""
WITH forgotten AS (
  DELETE FROM node_terms t USING model_nodes q WHERE q.workspace_id = $1 AND q.model_id = $2
    AND t.workspace_id = $1 AND t.node_id = q.node_id
  RETURNING t.node_id AS id),
{noted("forgotten")}
SELECT
"""
_PUT_BACK = """
UPDATE nodes n SET status = 'pending', attempt = 0, crash_count = 0, embedded_run = NULL,
  lease_owner = NULL, lease_until = NULL, error_reason = NULL, error_message = NULL,
  available_at = now(), updated_at = now(), status_since = now()
FROM model_nodes q WHERE q.workspace_id = $1 AND q.model_id = $2
  AND n.workspace_id = $1 AND n.id = q.node_id AND n.status <> 'pending'
"""
"""What the new model has no vector of waits for one."""

_PUT_BACK_FAILED = """
UPDATE nodes SET status = 'pending', attempt = 0, crash_count = 0, error_reason = NULL,
  error_message = NULL, available_at = now(), updated_at = now(), status_since = now()
WHERE workspace_id = $1 AND status = 'failed'
"""
"""By way of `pending`, as no step leads from failed to embedded."""

_HAS_VECTOR = """
SELECT n.id, n.qualified_name, f.path FROM nodes n
JOIN files f ON f.workspace_id = n.workspace_id AND f.id = n.file_id
WHERE n.workspace_id = $1 AND n.status = 'pending' AND n.id > $3
  AND NOT EXISTS (SELECT 1 FROM model_nodes q
    WHERE q.workspace_id = $1 AND q.model_id = $2 AND q.node_id = n.id)
ORDER BY n.id LIMIT $4
"""
_FORGET_VECTORS = """
DELETE FROM {table} v USING nodes n WHERE v.workspace_id = $1 AND v.node_id = ANY ($2)
  AND n.workspace_id = $1 AND n.id = v.node_id AND n.status = 'pending'
"""
"""Of nodes whose text the cache lost, as a repair of theirs began: they are embedded again."""

_FORGET_QUEUE = "DELETE FROM model_nodes WHERE workspace_id = $1 AND model_id = $2"
_SWITCH = """
UPDATE workspaces SET active_model_id = $2, switch_fence = nextval('fences'), switched_at = now()
WHERE id = $1
"""


async def take_in(connection: Connection, workspace_id: WorkspaceId, model_id: ModelId) -> bool:
    """Makes a model one of the workspace, every node waiting for it; returns whether it is new."""
    if not await connection.fetchval(_TAKE_IN, workspace_id, model_id):
        return False
    await connection.execute("UPDATE models SET released_at = NULL WHERE id = $1", model_id)
    await add_partition(connection, vectors_table(model_id), workspace_id)
    await queue_all(connection, workspace_id, model_id)
    return True


async def would_be_lost(
    connection: Connection, workspace_id: WorkspaceId, model_id: ModelId
) -> int:
    """Returns how many nodes that search finds now have no vector of a model."""
    return int(await connection.fetchval(_WOULD_BE_LOST, workspace_id, model_id))


async def switch(
    connection: Connection, workspace_id: WorkspaceId, old: ModelId | None, new: ModelId
) -> None:
    """Makes `new` the model that search uses; what waits for it waits in the nodes' own queue.

    The other way round, what the old model has no vector of waits in the old model's queue. Nobody
    may have a claim. Costs as much as the two differ in what they have vectors of.
    """
    if old is not None:
        await connection.execute(_QUEUE_FOR_OLD, workspace_id, old, timeout=LONGEST_SECONDS)
    await connection.execute(_FORGET_TERMS, workspace_id, new, timeout=LONGEST_SECONDS)
    await connection.execute(_PUT_BACK, workspace_id, new, timeout=LONGEST_SECONDS)
    await connection.execute(_PUT_BACK_FAILED, workspace_id, timeout=LONGEST_SECONDS)
    after, table = 0, vectors_table(new)
    while rows := await connection.fetch(_HAS_VECTOR, workspace_id, new, after, _PAGE_NODES):
        names = {NodeId(row["id"]): name_terms(row["path"], row["qualified_name"]) for row in rows}
        await adopt_cached(connection, workspace_id, new, names)
        await connection.execute(_FORGET_VECTORS.format(table=table), workspace_id, list(names))
        after = rows[-1]["id"]
    await connection.execute(_FORGET_QUEUE, workspace_id, new, timeout=LONGEST_SECONDS)
    await connection.execute(_SWITCH, workspace_id, new)


async def drop(connection: Connection, workspace_id: WorkspaceId, model_id: ModelId) -> None:
    """Removes a model that is not the active one, with its vectors and its queue."""
    await connection.execute(_FORGET_QUEUE, workspace_id, model_id, timeout=LONGEST_SECONDS)
    await connection.execute(
        "DELETE FROM workspace_models WHERE workspace_id = $1 AND model_id = $2",
        workspace_id,
        model_id,
    )
    await connection.execute(f"DROP TABLE IF EXISTS {vectors_table(model_id)}_w{int(workspace_id)}")
    await connection.execute(_RELEASED, model_id)
