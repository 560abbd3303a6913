"""Large tables with fresh statistics, and the plans of statements over them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    import asyncpg

_NODES = 20_000


async def fill(connection: asyncpg.Connection) -> None:
    """Fills the first workspace with 5,000 files, 20,000 nodes and 5,000 runs, with statistics."""
    await connection.execute(
        f"""
        INSERT INTO files (workspace_id, path, state, digest, recipe, language, line_count, size,
          mtime_ns, ctime_ns, inode, settled)
        SELECT 1, 'f' || i, 'indexed', decode(repeat('00', 32), 'hex'), 'r', 'python', 1, 1, 1, 1,
          1, true FROM generate_series(1, 5000) i;
        INSERT INTO nodes (workspace_id, id, file_id, generation, ordinal, kind, qualified_name,
          start_byte, end_byte, start_line, end_line, part, part_count, token_estimate,
          content_hash, status)
        SELECT 1, nextval('node_ids'), f.id, 1, o, 'function', 'a.n' || f.id, 0, 1, 1, 1, 0, 1, 1,
          decode(lpad(to_hex(f.id * 4 + o), 64, '0'), 'hex'),
          CASE WHEN f.id % 100 = 0 THEN 'pending' ELSE 'embedded' END
        FROM files f, generate_series(1, {_NODES // 5000}) o;
        INSERT INTO runs (workspace_id, request_id, request_digest, mode, state, finished_at)
        SELECT 1, gen_random_uuid(), '', 'full', 'succeeded', now()
        FROM generate_series(1, 5000);
        ANALYZE
        """
    )


async def plan_of(connection: asyncpg.Connection, sql: str, arguments: Sequence[Any]) -> str:
    """Returns how PostgreSQL would run a statement."""
    rows = await connection.fetch(f"EXPLAIN {sql}", *arguments)
    return "\n".join(row[0] for row in rows)
