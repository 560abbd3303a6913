"""What must hold of the tables after anything, and what an index holds, ids aside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import asyncpg

if TYPE_CHECKING:
    from tests.integration.indexing import Indexing

_LOST = {
    "a node without its file": """
        SELECT count(*) FROM nodes n LEFT JOIN files f USING (workspace_id)
        WHERE f.id IS NULL""",
    "a node of an old generation": """
        SELECT count(*) FROM nodes n
        JOIN files f ON f.workspace_id = n.workspace_id AND f.id = n.file_id
        WHERE n.generation <> f.generation""",
    "terms of a node that is not embedded, or none of one that is": """
        SELECT count(*) FROM nodes n
        FULL JOIN node_terms t ON t.workspace_id = n.workspace_id AND t.node_id = n.id
        WHERE n.id IS NULL OR (n.status = 'embedded') <> (t.node_id IS NOT NULL)""",
    "a failed node without a reason": """
        SELECT count(*) FROM nodes WHERE status = 'failed' AND error_reason IS NULL""",
    "a run whose counters are not a count of the nodes": """
        SELECT count(*) FROM runs r JOIN workspaces w ON w.last_run_id = r.id,
        LATERAL (SELECT count(*) AS total, count(*) FILTER (WHERE status = 'embedded') AS embedded,
            count(*) FILTER (WHERE status = 'failed') AS failed
          FROM nodes n WHERE n.workspace_id = r.workspace_id
            AND (r.mode NOT IN ('scoped', 'repair') OR n.id IN (
              SELECT node_id FROM run_nodes s
              WHERE s.workspace_id = r.workspace_id AND s.run_id = r.id))) held
        WHERE (r.nodes_total, r.nodes_embedded + r.nodes_reused, r.nodes_failed, r.nodes_pending)
          <> (held.total, held.embedded, held.failed, held.total - held.embedded - held.failed)""",
    "a run whose counters are not a count of its outcomes": """
        SELECT count(*) FROM runs r JOIN workspaces w ON w.last_run_id = r.id,
        LATERAL (SELECT count(*) FILTER (WHERE entity = 'node') AS nodes,
            count(*) FILTER (WHERE entity = 'file') AS files
          FROM run_outcomes o WHERE o.workspace_id = r.workspace_id AND o.run_id = r.id) listed
        WHERE (r.nodes_failed, r.files_failed) <> (listed.nodes, listed.files)""",
    "a node in work though no run is": """
        SELECT count(*) FROM nodes n WHERE status = 'processing' AND NOT EXISTS (
          SELECT 1 FROM runs r WHERE r.workspace_id = n.workspace_id AND r.finished_at IS NULL)""",
}
_VECTORS = """
SELECT count(*) FROM (SELECT n.* FROM nodes n JOIN workspaces w ON w.id = n.workspace_id
    WHERE w.active_model_id = {model}) n
  FULL JOIN node_vectors_m{model} v ON v.workspace_id = n.workspace_id AND v.node_id = n.id
WHERE n.id IS NULL OR (n.status = 'embedded') <> (v.node_id IS NOT NULL)
  OR v.content_hash <> n.content_hash
"""
_WRONG_VECTORS = """
SELECT count(*) FROM node_vectors_m{model} v
LEFT JOIN embedding_cache c ON c.model_id = {model} AND c.content_hash = v.content_hash
WHERE c.embedding IS DISTINCT FROM v.embedding::halfvec
"""
_IDLE = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND state LIKE 'idle in transaction%'
"""
_LOCKS = """
SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
WHERE a.datname = current_database() AND a.pid <> pg_backend_pid() AND l.mode LIKE '%Exclusive%'
  AND l.locktype IN ('tuple', 'transactionid')
"""
_FILES = """
SELECT path, state, skip_reason, digest, recipe, language, line_count, size
FROM files WHERE workspace_id = $1 ORDER BY path
"""
_NODES = """
SELECT f.path, n.ordinal, n.kind, n.qualified_name, n.start_byte, n.end_byte, n.start_line,
  n.end_line, n.segments, n.part, n.part_count, n.content_hash, n.status, p.ordinal AS parent
FROM nodes n
JOIN files f ON f.workspace_id = n.workspace_id AND f.id = n.file_id
LEFT JOIN nodes p ON p.workspace_id = n.workspace_id AND p.id = n.parent_id
WHERE n.workspace_id = $1 ORDER BY f.path, n.ordinal
"""
_TERMS = """
SELECT f.path, n.ordinal, t.terms, t.counts, t.length, t.name_terms
FROM node_terms t
JOIN nodes n ON n.workspace_id = t.workspace_id AND n.id = t.node_id
JOIN files f ON f.workspace_id = n.workspace_id AND f.id = n.file_id
WHERE t.workspace_id = $1 ORDER BY f.path, n.ordinal
"""


async def broken_rules(url: str) -> list[str]:
    """Returns the rules (I1, I2, I4, X3) that the tables break, with how often; I6 of connections.

    Vectors, terms and status agree: an embedded node has exactly one vector, of its content, and
    one row of terms; no other node has any.
    """
    connection = await asyncpg.connect(url)
    try:
        found = {what: await connection.fetchval(sql) for what, sql in _LOST.items()}
        for row in await connection.fetch("SELECT id FROM models"):
            found["a vector too many, too few, or of another text"] = await connection.fetchval(
                _VECTORS.format(model=row["id"])
            )
            found["a vector that is not the one of its text"] = await connection.fetchval(
                _WRONG_VECTORS.format(model=row["id"])
            )
        found["a connection left in a transaction"] = await connection.fetchval(_IDLE)
        found["a lock that nobody gave back"] = await connection.fetchval(_LOCKS)
    finally:
        await connection.close()
    return [f"{what}: {count}" for what, count in found.items() if count]


async def rows_of(url: str, workspace: str) -> dict[str, list[tuple[Any, ...]]]:
    """Returns all that an index holds, ids and times aside."""
    connection = await asyncpg.connect(url)
    try:
        number = await connection.fetchval("SELECT id FROM workspaces WHERE name = $1", workspace)
        return {
            name: [tuple(row) for row in await connection.fetch(sql, number)]
            for name, sql in (("files", _FILES), ("nodes", _NODES), ("terms", _TERMS))
        }
    finally:
        await connection.close()


async def check(services: Indexing, workspace: str, directory: str) -> None:
    """Holds an index to the rules, and to one that is built from scratch in another workspace."""
    assert await broken_rules(services.url) == []
    scratch = f"{workspace}-scratch"
    await services.create(scratch, directory)
    await services.run(scratch)
    expected = await rows_of(services.url, scratch)
    found = await rows_of(services.url, workspace)
    await services.delete(scratch)
    for name, rows in expected.items():
        assert found[name] == rows, name
    assert await broken_rules(services.url) == []
