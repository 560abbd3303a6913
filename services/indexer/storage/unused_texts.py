"""Forgets what is cached of texts that no node has had for long, so that the cache is bounded.

A sweep notes which cached texts no node has, and takes back the note of those that a node has
again; it reads all nodes, so there is one a day over all replicas. What was noted for as long as
texts are kept goes, a bounded number at a time. Whoever takes a text's vector out of the cache
does so in one statement, and whoever needs one that it put there itself is waited for: neither sees
a text half gone. A node that came to have a text again since the sweep keeps
its vector; a twin of it costs a forward.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.indexer.storage.cache import forget
from services.runtime.log import get_logger

if TYPE_CHECKING:
    from services.indexer.storage.database import Connection, Database

_SWEEP_LOCK_KEY = 0x10DE_5715
_SWEEP_SECONDS = 3600.0
_WORK_MEMORY = "64MB"
_MOST_TEXTS = 5000

_BEGIN = """
INSERT INTO upkeep_times AS t (task, started_at) VALUES ('unused_texts', now())
ON CONFLICT (task) DO UPDATE SET started_at = excluded.started_at
WHERE t.started_at <= now() - make_interval(secs => $1) RETURNING 1
"""
_USED_AGAIN = """
DELETE FROM unused_texts u
WHERE EXISTS (SELECT FROM nodes n WHERE n.content_hash = u.content_hash)
"""
_UNUSED = """
INSERT INTO unused_texts (model_id, content_hash)
SELECT c.model_id, c.content_hash FROM embedding_cache c
WHERE NOT EXISTS (SELECT FROM nodes n WHERE n.content_hash = c.content_hash)
ON CONFLICT DO NOTHING
"""
TAKE = """
DELETE FROM unused_texts WHERE (model_id, content_hash) IN (
  SELECT model_id, content_hash FROM unused_texts
  WHERE since <= now() - make_interval(secs => $1) ORDER BY since LIMIT $2)
RETURNING model_id, content_hash
"""
_DAY_SECONDS = 86_400.0


class UnusedTexts:
    """Keeps the cache to texts that nodes have, or had not long ago.

    Args:
        database: where they are.
        keep_days: how long a text is kept that no node has; 0 keeps all for good.
        sweep_seconds: time from one look at all nodes to the next, over all replicas.
    """

    def __init__(self, database: Database, *, keep_days: float, sweep_seconds: float) -> None:
        self._database = database
        self._keep_seconds = keep_days * _DAY_SECONDS
        self._sweep_seconds = sweep_seconds

    async def step(self) -> int:
        """Sweeps if it is time, and forgets some texts; returns how many, 0 when none is left.

        One replica does so at a time; the others find nothing to do.
        """
        if not self._keep_seconds:
            return 0
        async with self._database.alone(_SWEEP_LOCK_KEY) as connection:
            if connection is None:
                return 0
            await self._sweep(connection)
            async with connection.transaction():
                texts = await connection.fetch(TAKE, self._keep_seconds, _MOST_TEXTS)
                return await forget(connection, texts)

    async def _sweep(self, connection: Connection) -> None:
        """Notes which texts no node has; a sweep that fails is made again."""
        async with connection.transaction():
            if await connection.fetchval(_BEGIN, self._sweep_seconds) is None:
                return
            await connection.execute(f"SET LOCAL work_mem = '{_WORK_MEMORY}'")
            await connection.execute(_USED_AGAIN, timeout=_SWEEP_SECONDS)
            done = await connection.execute(_UNUSED, timeout=_SWEEP_SECONDS)
        get_logger().info("unused_texts_noted", texts=int(done.rpartition(" ")[2]))
