"""The cache of what texts became: their vectors by model, their terms."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pgvector import HalfVector

from services.indexer.storage.partitions import vectors_table
from services.indexer.storage.term_changes import noted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import asyncpg

    from services.indexer.model import EmbeddedContent, ModelId, NodeId, WorkspaceId
    from services.indexer.storage.database import Connection


_FILL_LOCK_KEY = 0x10DE_5714
"""Advisory lock that whoever fills the cache holds shared, and whoever forgets texts alone."""

_WAIT_MILLISECONDS = 2000
"""Longest wait for commits in flight: those that come meanwhile wait behind it."""

_FORGET = """
DELETE FROM embedding_cache c USING unnest($1::int[], $2::bytea[]) old (model_id, content_hash)
WHERE c.model_id = old.model_id AND c.content_hash = old.content_hash
"""
_FORGET_TERMS = """
DELETE FROM content_terms t WHERE t.content_hash = ANY ($1) AND NOT EXISTS (
  SELECT FROM models m
  JOIN embedding_cache c ON c.model_id = m.id AND c.content_hash = t.content_hash)
"""


async def adopt_cached(
    connection: Connection,
    workspace_id: WorkspaceId,
    model_id: int,
    nodes: Mapping[NodeId, tuple[str, ...]],
    *,
    fences: Mapping[NodeId, int] | None = None,
) -> int:
    """Gives nodes that wait their vector and terms from the cache; returns how many got them.

    Args:
        connection: inside a transaction.
        workspace_id: the nodes' workspace.
        model_id: the model that the vectors are of.
        nodes: ids, each with the terms of its name; they are pending, or leased by the caller.
        fences: of claims: those that the caller has no more are left alone, as whoever took them
            back may know another name. None where nobody else changes the nodes.
    """
    if not nodes:
        return 0
    table = vectors_table(model_id)
    return int(
        await connection.fetchval(
            f"""
            WITH v AS MATERIALIZED (
              SELECT n.id, n.content_hash, string_to_array(a.names, ' ') AS names,
                nextval('fences') AS fence
              FROM unnest($3::bigint[], $4::text[], $5::bigint[]) a (id, names, fence)
              JOIN nodes n ON n.workspace_id = $1 AND n.id = a.id
              WHERE n.status IN ('pending', 'processing')
                AND (a.fence IS NULL OR n.fence = a.fence AND n.status = 'processing')
                AND EXISTS (SELECT 1 FROM embedding_cache c
                  WHERE c.model_id = $2 AND c.content_hash = n.content_hash)
                AND EXISTS (SELECT 1 FROM content_terms t WHERE t.content_hash = n.content_hash)
              ORDER BY n.id FOR UPDATE OF n),
            u AS (
              UPDATE nodes n SET status = 'embedded', fence = v.fence, lease_owner = NULL,
                lease_until = NULL, error_reason = NULL, error_message = NULL,
                embedded_run = NULL, updated_at = now(), status_since = now()
              FROM v WHERE n.workspace_id = $1 AND n.id = v.id
              RETURNING n.id, v.fence, v.content_hash, v.names),
            e AS (
              INSERT INTO {table} (workspace_id, node_id, fence, content_hash, embedding)
              SELECT $1, u.id, u.fence, u.content_hash, c.embedding
              FROM u JOIN embedding_cache c ON c.model_id = $2 AND c.content_hash = u.content_hash
              ON CONFLICT (workspace_id, node_id) DO UPDATE SET fence = excluded.fence,
                content_hash = excluded.content_hash, embedding = excluded.embedding),
            t AS (
              INSERT INTO node_terms
                (workspace_id, node_id, fence, terms, counts, length, name_terms)
              SELECT $1, u.id, u.fence, t.terms, t.counts, t.length, u.names
              FROM u JOIN content_terms t ON t.content_hash = u.content_hash
              ON CONFLICT (workspace_id, node_id) DO UPDATE SET fence = excluded.fence,
                terms = excluded.terms, counts = excluded.counts, length = excluded.length,
                name_terms = excluded.name_terms),
            {noted("u")}
            SELECT count(*) FROM u
            """,
            workspace_id,
            model_id,
            list(nodes),
            [" ".join(names) for names in nodes.values()],
            [None if fences is None else fences[node] for node in nodes],
        )
    )


async def fill_cache(
    connection: Connection, model_id: ModelId, contents: Mapping[bytes, EmbeddedContent]
) -> None:
    """Puts texts that became vectors into the cache; the first vector of a text stays.

    They stay at least until the transaction ends, those too that were there before.
    """
    # Sorted, so that two transactions lock rows in one order.
    items = sorted(contents.values(), key=lambda item: item.content_hash)
    await connection.execute(
        f"""
        WITH held AS MATERIALIZED (SELECT pg_advisory_xact_lock_shared({_FILL_LOCK_KEY}))
        INSERT INTO embedding_cache (model_id, content_hash, embedding, token_count, truncated)
        SELECT $1, v.* FROM held,
          unnest($2::bytea[], $3::halfvec[], $4::int[], $5::boolean[]) v
        ON CONFLICT DO NOTHING
        """,
        model_id,
        [item.content_hash for item in items],
        [HalfVector(np.frombuffer(item.vector, dtype="<f2")) for item in items],
        [item.token_count for item in items],
        [item.truncated for item in items],
    )
    await connection.execute(
        """
        INSERT INTO content_terms (content_hash, terms, counts, length)
        SELECT hash, string_to_array(terms, ' '), string_to_array(counts, ' ')::int[], length
        FROM unnest($1::bytea[], $2::text[], $3::text[], $4::int[]) v (hash, terms, counts, length)
        ON CONFLICT DO NOTHING
        """,
        [item.content_hash for item in items],
        [" ".join(item.terms) for item in items],
        [" ".join(map(str, item.terms.values())) for item in items],
        [sum(item.terms.values()) for item in items],
    )


async def forget(connection: Connection, texts: Sequence[asyncpg.Record]) -> int:
    """Removes cached vectors, and terms of texts that no model has a vector of; returns how many.

    Inside a transaction. Who fills the cache is waited for before a row is touched: he may wait for
    a row in turn.

    Args:
        connection: of the transaction.
        texts: each with `model_id` and `content_hash`.
    """
    if texts:
        await connection.execute(f"SET LOCAL lock_timeout = {_WAIT_MILLISECONDS}")
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _FILL_LOCK_KEY)
        hashes = [row["content_hash"] for row in texts]
        await connection.execute(_FORGET, [row["model_id"] for row in texts], hashes)
        await connection.execute(_FORGET_TERMS, hashes)
    return len(texts)
