"""Indexes over large partitions of vectors, used only while they find what a scan finds.

A partition below a size is scanned: exact, and fast enough. Above it an index is built once the
workspace's runs are done, beside readers and writers, and its recall is measured against the exact
scan. It divides the vectors into lists by their nearest centre (pgvector's IVFFlat); a search reads
the lists of the centres that are nearest to the question, the least number of them whose recall is
good enough, and is not by the index when none is. When the partition has grown, the index is built
anew with more lists, and measured.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.indexer.model import ModelId, WorkspaceId
from services.indexer.storage.partitions import vectors_table
from services.runtime.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import asyncpg
    from pgvector import HalfVector

    from services.indexer.storage.database import Connection, Database

_LOCK_KEY = 0x10DE_5711
_KNOWN_SECONDS = 5.0
"""How long a replica may go by what it read: one that knows less is slower, not wrong."""

_BUILD_SECONDS = 6 * 3600.0
_LIST_NODES, _MOST_LISTS = 125, 1000
"""Nodes of a list on average, and most lists: finding centres takes memory by their square."""

_MOST_DIMENSIONS = 4000
"""Longest vectors of 16-bit numbers that pgvector has such an index for; others are scanned."""

_STEPS = (10, 20, 40, 80, 160)
_QUESTIONS, _DEPTH = 60, 100
"""Vectors that are asked for to measure recall, and how many of the nearest count."""

_NODES_OF_QUESTION = 4
"""Nodes between which such a vector lies: those between two are found too easily."""

_TOLERANCE = 0.03
"""How far below its least an index's recall may be by the choice of questions alone."""

_GROWN = 2.0
"""Growth of a partition after which its index is built again."""

_WANTED = f"""
SELECT w.id AS workspace_id, m.id AS model_id, c.relname AS partition,
  c.reltuples::bigint AS nodes, m.dimensions, i.indexrelid IS NOT NULL AS built,
  coalesce(i.indisvalid, false) AS valid, coalesce(c.reltuples > v.nodes * $2, false) AS grown
FROM workspaces w CROSS JOIN models m
JOIN pg_class c ON c.relname = 'node_vectors_m' || m.id || '_w' || w.id
  AND c.relnamespace = current_schema()::regnamespace
LEFT JOIN pg_class ic ON ic.relname = c.relname || '_lists' AND ic.relnamespace = c.relnamespace
LEFT JOIN pg_index i ON i.indexrelid = ic.oid
LEFT JOIN vector_indexes v ON v.workspace_id = w.id AND v.model_id = m.id
WHERE c.reltuples >= $1 AND m.dimensions <= {_MOST_DIMENSIONS}
  AND (i.indexrelid IS NULL OR NOT i.indisvalid OR v.nodes IS NULL OR c.reltuples > v.nodes * $2)
  AND NOT EXISTS (SELECT FROM runs r WHERE r.workspace_id = w.id AND r.finished_at IS NULL)
ORDER BY c.reltuples LIMIT 1
"""

NEAREST = """
WITH used AS MATERIALIZED (
  SELECT set_config('ivfflat.probes', $3, true) AS probes,
    set_config('ivfflat.iterative_scan', 'relaxed_order', true) AS iterative_scan)
SELECT node_id, score FROM used, LATERAL (
  SELECT node_id, -(embedding <#> $1) AS score FROM {table}
  WHERE {condition} AND (used.probes, used.iterative_scan) IS NOT NULL
  ORDER BY embedding <#> $1 FETCH FIRST $2 ROWS WITH TIES) found
ORDER BY score DESC, node_id LIMIT $2
"""
"""The scan looks at settings when it begins: they are set before, for this statement alone, as it
depends on what sets them. So one question costs one statement. Of nodes with the last one's
distance, such as copies of its text, the earliest are taken, wherever they stand in a list."""


@dataclass(frozen=True, slots=True)
class Partition:
    """The vectors of one workspace by one model."""

    table: str
    workspace_id: int
    active_model: int | None = None
    """The model whose vectors these are, when they are to be read only while it is the active."""

    @property
    def condition(self) -> str:
        """What rows must be; numbers alone stand in it.

        The workspace stands in the text: its partition is then known when a statement is planned.
        """
        own = f"workspace_id = {int(self.workspace_id)}"
        if self.active_model is None:
            return own
        return (
            f"{own} AND EXISTS (SELECT FROM workspaces WHERE id = {int(self.workspace_id)} "
            f"AND active_model_id = {int(self.active_model)})"
        )


@dataclass(frozen=True, slots=True)
class _Known:
    probes: int | None
    until: float


class VectorIndexes:
    """Builds indexes, one after the other over all replicas, and tells how to use them.

    Args:
        database: where they are.
        least_nodes: size of a partition from which on an index is worth it; 0 builds none.
        least_recall: share of the hundred nearest that it must find.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        database: Database,
        *,
        least_nodes: int,
        least_recall: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._least_nodes = least_nodes
        self._least_recall = least_recall
        self._clock = clock
        self._known: dict[tuple[WorkspaceId, ModelId], _Known] = {}

    async def probes(self, workspace_id: WorkspaceId, model_id: ModelId) -> int | None:
        """Returns how many lists of a partition's index are to be read, None to use it not."""
        if self._least_nodes == 0:
            return None
        key = (workspace_id, model_id)
        known = self._known.get(key)
        if known is None or known.until < self._clock():
            async with self._database.connection() as connection:
                value = await connection.fetchval(
                    "SELECT probes FROM vector_indexes WHERE workspace_id = $1 AND model_id = $2",
                    workspace_id,
                    model_id,
                )
            known = self._known[key] = _Known(value, self._clock() + _KNOWN_SECONDS)
        return known.probes

    async def finds_enough(self, workspace_id: WorkspaceId, model_id: ModelId) -> bool | None:
        """Tells whether the index, as searches read it, finds what it was measured to find.

        None where searches read none. It scans the partition some sixty times.
        """
        if self._least_nodes == 0:
            return None
        async with self._database.connection() as connection:
            probes = await connection.fetchval(
                "SELECT probes FROM vector_indexes WHERE workspace_id = $1 AND model_id = $2",
                workspace_id,
                model_id,
            )
            if probes is None:
                return None
            within = Partition(vectors_table(model_id), workspace_id)
            recall = await _recall(connection, within, await _asked(connection, within), probes)
        return recall >= self._least_recall - _TOLERANCE

    async def step(self) -> int:
        """Builds or measures one index that is wanted; returns how many, 0 or 1."""
        if self._least_nodes == 0:
            return 0
        # Building cannot happen inside a transaction.
        async with self._database.alone(_LOCK_KEY) as connection:
            if connection is None:
                return 0
            row = await connection.fetchrow(_WANTED, self._least_nodes, _GROWN)
            if row is None:
                return 0
            if row["grown"] or not row["valid"]:
                await self._build(connection, row)
            table = vectors_table(row["model_id"])
            await self._measure(
                connection, table, row["workspace_id"], row["model_id"], row["nodes"]
            )
        self._known.pop((WorkspaceId(row["workspace_id"]), ModelId(row["model_id"])), None)
        return 1

    async def _build(self, connection: Connection, wanted: asyncpg.Record) -> None:
        """Builds an index, or builds one anew while searches go on by the old one."""
        started = time.monotonic()
        partition = wanted["partition"]
        name = f"{partition}_lists"
        lists = max(1, min(_MOST_LISTS, wanted["nodes"] // _LIST_NODES))
        # What is left of builders that died, and of versions that had another kind of index.
        for left in (f"{name}_ccnew", f"{partition}_hnsw"):
            await connection.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {left}")
        if wanted["built"] and not wanted["valid"]:
            await connection.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
        memory = _build_mebibytes(lists, wanted["dimensions"])
        await connection.execute(f"SET maintenance_work_mem = '{memory}MB'")
        try:
            if wanted["valid"]:
                await connection.execute(f"ALTER INDEX {name} SET (lists = {lists})")
                statement = f"REINDEX INDEX CONCURRENTLY {name}"
            else:
                statement = (
                    f"CREATE INDEX CONCURRENTLY {name} ON {partition} "
                    f"USING ivfflat (embedding halfvec_ip_ops) WITH (lists = {lists})"
                )
            await connection.execute(statement, timeout=_BUILD_SECONDS)
        finally:
            await connection.execute("RESET maintenance_work_mem")
        seconds = round(time.monotonic() - started, 3)
        get_logger().info("vector_index_built", seconds=seconds, lists=lists)

    async def _measure(
        self, connection: Connection, table: str, workspace_id: int, model_id: int, nodes: int
    ) -> None:
        """Notes the least `probes` that finds enough of what an exact scan finds."""
        within = Partition(table, workspace_id)
        asked = await _asked(connection, within)
        recall, chosen = 0.0, None
        for probes in _STEPS:
            recall = await _recall(connection, within, asked, probes)
            if recall >= self._least_recall:
                chosen = probes
                break
        await connection.execute(
            """
            INSERT INTO vector_indexes (workspace_id, model_id, probes, recall, nodes)
            VALUES ($1, $2, $3, $4, $5)
            ON CONFLICT (workspace_id, model_id) DO UPDATE SET probes = excluded.probes,
              recall = excluded.recall, nodes = excluded.nodes, measured_at = now()
            """,
            workspace_id,
            model_id,
            chosen,
            recall,
            nodes,
        )
        get_logger().info("vector_index_measured", recall=round(recall, 4), probes=chosen)


def _build_mebibytes(lists: int, dimensions: int) -> int:
    """Returns the memory that finding centres takes: 50 vectors a list, and distances of each."""
    sample = max(50 * lists, 10_000)
    return 64 + (sample * (4 * lists + 2 * dimensions) + 12 * lists * lists) // 2**20


async def distrust(connection: Connection, workspace_id: int, model_id: int) -> None:
    """Has searches scan a partition until its index is built anew and measured."""
    await connection.execute(
        "UPDATE vector_indexes SET probes = NULL, nodes = 0 "
        "WHERE workspace_id = $1 AND model_id = $2",
        workspace_id,
        model_id,
    )


async def _asked(
    connection: Connection, within: Partition
) -> Sequence[tuple[HalfVector, frozenset[int]]]:
    """Returns vectors to ask for, each with the nearest nodes by an exact scan."""
    rows = await connection.fetch(
        # Between some nodes, as far from each of them as questions are.
        f"""
        SELECT l2_normalize(sum(embedding)) AS embedding FROM (
          SELECT embedding, row_number() OVER (ORDER BY random()) AS place FROM {within.table}
          WHERE {within.condition}) drawn
        WHERE place <= $1::int * $2::int GROUP BY place % $1::int
        """,
        _QUESTIONS,
        _NODES_OF_QUESTION,
        timeout=600,
    )
    return [
        (
            row["embedding"],
            frozenset(node for node, _ in await _scan(connection, within, row["embedding"])),
        )
        for row in rows
    ]


async def _recall(
    connection: Connection,
    within: Partition,
    asked: Sequence[tuple[HalfVector, frozenset[int]]],
    probes: int,
) -> float:
    """Returns the share of the nearest that the index finds by so many lists."""
    found = 0
    for vector, exact in asked:
        rows = await nearest(connection, within, vector, _DEPTH, probes)
        found += sum(node in exact for node, _ in rows)
    return found / (sum(len(exact) for _, exact in asked) or 1)


async def nearest(
    connection: Connection,
    within: Partition,
    vector: HalfVector,
    limit: int,
    probes: int,
) -> Sequence[tuple[int, float]]:
    """Returns (node, inner product) of the nearest nodes by the index, the best first.

    There may be fewer than `limit` where deleted nodes stand in the index: the caller then scans.
    """
    rows = await connection.fetch(
        NEAREST.format(table=within.table, condition=within.condition),
        vector,
        limit,
        str(probes),
    )
    return list(map(tuple, rows))


async def _scan(
    connection: Connection, within: Partition, vector: HalfVector
) -> Sequence[tuple[int, float]]:
    rows = await connection.fetch(
        # An expression that no index has.
        f"""
        SELECT node_id, -(embedding <#> $1) AS score FROM {within.table}
        WHERE {within.condition}
        ORDER BY -(embedding <#> $1) DESC, node_id LIMIT {_DEPTH}
        """,
        vector,
        timeout=60,
    )
    return [(row[0], row[1]) for row in rows]
