"""Vectors that disagree, marked by the model that they are of, and put back to be made again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.indexer.model import ModelId
from services.indexer.storage.partitions import vectors_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.indexer.model import WorkspaceId
    from services.indexer.storage.database import Connection

BESIDE = """
SELECT n.id, f.path, n.qualified_name, NULL::text[] AS name_terms, CASE
    WHEN q.node_id IS NOT NULL AND v.node_id IS NOT NULL THEN 'not_embedded_but_indexed'
    WHEN q.node_id IS NOT NULL THEN NULL
    WHEN v.node_id IS NULL THEN 'vector_missing'
    WHEN v.content_hash <> n.content_hash THEN 'vector_of_other_text'
    WHEN c.embedding IS NOT NULL AND c.embedding <> v.embedding::halfvec THEN 'vector_wrong'
  END AS kind
FROM nodes n
JOIN files f ON f.workspace_id = n.workspace_id AND f.id = n.file_id
LEFT JOIN model_nodes q
  ON q.workspace_id = n.workspace_id AND q.model_id = $2 AND q.node_id = n.id
LEFT JOIN {table} v ON v.workspace_id = n.workspace_id AND v.node_id = n.id
LEFT JOIN embedding_cache c ON c.model_id = $2 AND c.content_hash = n.content_hash
WHERE n.workspace_id = $1 AND n.id > $3 ORDER BY n.id LIMIT $4
"""
"""What disagrees of a model beside the active one: a node waits for it, or has a vector of it."""

_MARK = """
INSERT INTO model_marks (workspace_id, model_id, node_id, kind)
SELECT w.workspace_id, w.model_id, v.node_id, v.kind
FROM unnest($2::int[], $3::bigint[], $4::text[]) v (model_id, node_id, kind)
JOIN workspace_models w ON w.workspace_id = $1 AND w.model_id = v.model_id
FOR KEY SHARE OF w
ON CONFLICT (workspace_id, model_id, node_id) DO UPDATE SET kind = excluded.kind,
  created_at = now()
"""
"""Of a model that the workspace has no more there is nothing to repair."""

_LEFT_OVER = """
model_nodes q WHERE q.workspace_id = $1 AND (
  NOT EXISTS (SELECT 1 FROM nodes n WHERE n.workspace_id = $1 AND n.id = q.node_id)
  OR q.model_id NOT IN (SELECT m.model_id FROM workspace_models m
    JOIN workspaces w ON w.id = m.workspace_id
    WHERE m.workspace_id = $1 AND m.model_id IS DISTINCT FROM w.active_model_id))
"""
"""Rows of queues without their node, of no model of the workspace, or of its active one: none is
ever claimed to an end, so that whoever waits for an empty queue waits for ever."""

_OTHERS = """
SELECT DISTINCT model_id FROM model_marks WHERE workspace_id = $1 AND model_id <> $2
ORDER BY model_id
"""
_MARKED = """
SELECT n.id, n.content_hash FROM model_marks m
JOIN nodes n ON n.workspace_id = m.workspace_id AND n.id = m.node_id
WHERE m.workspace_id = $1 AND m.model_id = $2 ORDER BY n.id
"""
_QUEUE = """
INSERT INTO model_nodes AS q (workspace_id, model_id, node_id)
SELECT $1, $2, node FROM unnest($3::bigint[]) node ORDER BY node
ON CONFLICT (workspace_id, model_id, node_id) DO UPDATE SET status = 'pending', attempt = 0,
  crash_count = 0, available_at = now(), error_reason = NULL, error_message = NULL,
  updated_at = now(), status_since = now()
WHERE q.status = 'failed'
"""
"""One that waits, or is in work, goes on as it does."""


async def count_left_over(connection: Connection, workspace_id: WorkspaceId) -> int:
    """Returns how many rows of queues of models are of nothing that waits."""
    return int(await connection.fetchval(f"SELECT count(*) FROM {_LEFT_OVER}", workspace_id))


async def forget_left_over(connection: Connection, workspace_id: WorkspaceId) -> None:
    """Removes those rows, inside a transaction that holds the workspace's models."""
    await connection.execute(f"DELETE FROM {_LEFT_OVER}", workspace_id)


async def mark(
    connection: Connection, workspace_id: WorkspaceId, marks: Sequence[tuple[ModelId, int, str]]
) -> None:
    """Marks vectors, each given as its model, its node and what is wrong."""
    await connection.execute(
        _MARK,
        workspace_id,
        [model_id for model_id, _, _ in marks],
        [node for _, node, _ in marks],
        [kind for _, _, kind in marks],
    )


async def put_back(
    connection: Connection, workspace_id: WorkspaceId, active: ModelId
) -> list[ModelId]:
    """Lets marked nodes wait for the models beside the active one; returns which, marks cleared.

    Inside a transaction that holds the workspace's models and the marked nodes. Vectors go, and
    what the cache of the model holds of their texts.
    """
    models = [
        ModelId(row["model_id"]) for row in await connection.fetch(_OTHERS, workspace_id, active)
    ]
    for model_id in models:
        rows = await connection.fetch(_MARKED, workspace_id, model_id)
        nodes = [row["id"] for row in rows]
        await forget_vectors(
            connection, workspace_id, model_id, nodes, [row["content_hash"] for row in rows]
        )
        await connection.execute(_QUEUE, workspace_id, model_id, nodes)
    await connection.execute(
        "DELETE FROM model_marks WHERE workspace_id = $1 AND model_id = ANY ($2)",
        workspace_id,
        models,
    )
    return models


async def forget_vectors(
    connection: Connection,
    workspace_id: WorkspaceId,
    model_id: ModelId,
    nodes: Sequence[int],
    hashes: Sequence[bytes],
) -> None:
    """Removes a model's vectors of nodes, and of their texts: the cache may be what is wrong."""
    await connection.execute(
        f"DELETE FROM {vectors_table(model_id)} WHERE workspace_id = $1 AND node_id = ANY ($2)",
        workspace_id,
        nodes,
    )
    await connection.execute(
        "DELETE FROM embedding_cache WHERE model_id = $1 AND content_hash = ANY ($2)",
        model_id,
        hashes,
    )
