"""Finished runs that need not be kept any more, removed in bounded steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.indexer.storage.cache import forget

if TYPE_CHECKING:
    from services.indexer.storage.database import Connection

_LOCK_KEY = 0x10DE_5710
_MOST_RUNS = 20
_MOST_ROWS = 5000

OLD_RUNS = """
SELECT r.workspace_id, r.id FROM runs r
WHERE r.finished_at < now() - make_interval(days => $1)
  AND (SELECT count(*) FROM (SELECT 1 FROM runs o
    WHERE o.workspace_id = r.workspace_id AND o.seq > r.seq LIMIT $2) newer) >= $2
ORDER BY r.finished_at LIMIT $3
"""
"""Runs that are old, with enough newer ones in their workspace."""


_OLD_CACHED = """
SELECT c.model_id, c.content_hash FROM models m JOIN embedding_cache c ON c.model_id = m.id
WHERE m.released_at < now() - make_interval(days => $1) LIMIT $2
"""


@dataclass(frozen=True, slots=True)
class RetentionRules:
    """What is kept of finished runs."""

    days: int
    """Runs that ended since are kept; request ids are known as long."""

    runs: int
    """Newest runs of a workspace that are kept however old they are."""


async def forget_cached(connection: Connection, rules: RetentionRules) -> int:
    """Removes some of what is cached of models that no workspace has had for long.

    Returns how many texts went; inside a transaction.
    """
    texts = await connection.fetch(_OLD_CACHED, rules.days, _MOST_ROWS)
    return await forget(connection, texts)


async def forget_old(connection: Connection, rules: RetentionRules) -> int:
    """Removes some old runs with what hangs on them; returns how many rows went, 0 at the end.

    Inside a transaction. One replica at a time does this; the others find nothing to do.
    """
    if not await connection.fetchval("SELECT pg_try_advisory_xact_lock($1)", _LOCK_KEY):
        return 0
    old = await connection.fetch(OLD_RUNS, rules.days, rules.runs, _MOST_RUNS)
    removed = 0
    for row in old:
        for table in ("run_outcomes", "run_nodes", "run_requests"):
            removed += await _remove_rows(connection, table, row["workspace_id"], row["id"])
            if removed >= _MOST_ROWS:
                return removed
        await connection.execute(
            "DELETE FROM runs WHERE workspace_id = $1 AND id = $2", row["workspace_id"], row["id"]
        )
        removed += 1
    return removed


async def _remove_rows(
    connection: Connection, table: str, workspace_id: int, run_id: object
) -> int:
    done = await connection.execute(
        f"DELETE FROM {table} WHERE ctid = ANY (ARRAY(SELECT ctid FROM {table} "
        "WHERE workspace_id = $1 AND run_id = $2 LIMIT $3))",
        workspace_id,
        run_id,
        _MOST_ROWS,
    )
    return int(done.rpartition(" ")[2])
