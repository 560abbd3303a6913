"""Makes blocks of postings of large workspaces, and makes them anew where nodes changed.

A workspace below a size has none: its terms are scored by SQL over the index of terms. Above it,
blocks are made once its runs are done. Each transaction that writes terms notes the nodes; a search
leaves these out of the blocks and scores them as they are now. When many are noted, the blocks that
they are of are replaced, and the notes that these cover go in the same transaction.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from services.indexer.search.postings import IMPACT_SCALE, K1, NAME_WEIGHT, RECIPE, B
from services.runtime.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from services.indexer.storage.database import Connection, Database

_LOCK_KEY = 0x10DE_5713
_BUILD_SECONDS = 3600.0
_WORK_MEMORY = "64MB"
MOST_BLOCK_NODES = 32_768
"""Nodes of a block: their places fit into 15 bits."""

LEAST_CHANGED, _CHANGED_SHARE, _MOST_CHANGED = 500, 0.01, 2000
"""Changes from which on blocks are made anew: a share of the nodes in blocks, within bounds.

Each costs every search some microsecond, and the first one of each process some thirty.
"""

MOST_NOTED = 5000
"""Changes that are noted, though for nothing, of a workspace that is too small for blocks."""

_NEVER = 1 << 62
"""More nodes than a workspace has."""

_MOST_DRIFT = 0.05
"""Change of the mean length, as a share, from which on all blocks are made anew."""

LOWEST, HIGHEST = -(1 << 63), (1 << 63) - 1
"""Bounds of ids of nodes: the first block reaches from the one, the last to the other."""

_WANTED = f"""
SELECT w.id FROM workspaces w
JOIN pg_class t ON t.relname = 'node_terms_w' || w.id
  AND t.relnamespace = current_schema()::regnamespace
LEFT JOIN (SELECT workspace_id, sum(cardinality(nodes)) AS amount
  FROM term_changes GROUP BY 1) c ON c.workspace_id = w.id
LEFT JOIN (SELECT workspace_id, sum(nodes) AS nodes, bool_or(recipe <> '{RECIPE}') AS old
  FROM term_blocks GROUP BY 1) b ON b.workspace_id = w.id
WHERE CASE WHEN b.nodes IS NULL THEN c.amount >= $3 OR c.amount > 0 AND t.reltuples >= $1
    ELSE b.old OR c.amount >= least({_MOST_CHANGED}, greatest($2, {_CHANGED_SHARE} * b.nodes)) END
  AND NOT EXISTS (SELECT FROM runs r WHERE r.workspace_id = w.id AND r.finished_at IS NULL)
ORDER BY c.amount LIMIT 1
"""
_TOUCHED = """
SELECT DISTINCT width_bucket(node, $2::bigint[]) AS place
FROM term_changes c, unnest(c.nodes) node WHERE c.workspace_id = $1 ORDER BY 1
"""
"""Places of blocks, whose bounds are given, in which nodes changed."""

_BLOCKS = """
SELECT id, recipe, first_node, mean_length FROM term_blocks
WHERE workspace_id = $1 ORDER BY first_node
"""
_SIZE = "SELECT count(*) AS nodes, avg(length)::float8 AS mean_length FROM {table}"
_STARTS = """
SELECT node_id FROM (
  SELECT node_id, row_number() OVER (ORDER BY node_id) - 1 AS place FROM {table}
  WHERE node_id >= $1 AND node_id < $2) numbered
WHERE place % $3 = 0 ORDER BY node_id
"""
ENTRIES = f"""
SELECT term,
  string_agg(int2send(place::int2) || int2send(impact::int2), ''::bytea ORDER BY place) AS entries
FROM (
  SELECT held.term, x.place, greatest(1, round(sum(held.impact) * {IMPACT_SCALE})) AS impact
  FROM (
    SELECT place, terms, counts, name_terms,
      {K1} * ({1 - B} + {B} * length / {{mean_length}}::float8) AS norm
    FROM ({{placed}}) placed) x,
  LATERAL (
    SELECT term COLLATE "C", count * {K1 + 1} / (count + x.norm) AS impact
    FROM unnest(x.terms, x.counts) counted (term, count)
    UNION ALL
    SELECT term COLLATE "C", {NAME_WEIGHT} FROM unnest(x.name_terms) term) held
  GROUP BY held.term, x.place) entry
GROUP BY term
"""
"""Entries by term of rows of `node_terms` that have places; see `search.postings.Block`."""

_PLACED = """
SELECT row_number() OVER (ORDER BY node_id) - 1 AS place, terms, counts, name_terms, length
FROM {table} WHERE node_id >= $3 AND node_id < $4
"""
_POSTINGS = f"""
INSERT INTO term_postings (workspace_id, term, block_id, entries)
SELECT $1, term, $2, entries FROM ({ENTRIES.format(placed=_PLACED, mean_length="$5")}) made
"""
_BLOCK = f"""
INSERT INTO term_blocks
  (workspace_id, id, recipe, first_node, nodes, mean_length, node_ids)
SELECT $1, $2, '{RECIPE}', min(node_id), count(*), $5,
  string_agg(int8send(node_id), ''::bytea ORDER BY node_id)
FROM {{table}} WHERE node_id >= $3 AND node_id < $4
"""


@dataclass(frozen=True, slots=True)
class _Span:
    """Ids of nodes from the first to before the last, and the blocks that lie there."""

    first: int
    last: int
    blocks: tuple[int, ...]


class TermIndex:
    """Makes blocks, of one workspace after the other over all replicas.

    Args:
        database: where they are.
        least_nodes: size of a workspace from which on it has blocks; 0 makes none.
        least_changed: changes that are left to searches, in a small workspace.
        block_nodes: most nodes of a block.
        most_noted: changes from which on a workspace without blocks is looked at: it is given
            blocks if it is large enough by now, and what is noted of it goes in any case.
    """

    def __init__(
        self,
        database: Database,
        *,
        least_nodes: int,
        least_changed: int = LEAST_CHANGED,
        block_nodes: int = MOST_BLOCK_NODES,
        most_noted: int = MOST_NOTED,
    ) -> None:
        self._database = database
        self._least_nodes = least_nodes or _NEVER
        self._most_noted = min(most_noted, self._least_nodes)
        self._least_changed = least_changed
        self._block_nodes = block_nodes

    async def step(self) -> int:
        """Brings the blocks of one workspace up to date; returns how many it did, 0 or 1."""
        # Not a lock of the transaction: that would see a state of before it had the lock.
        async with self._database.alone(_LOCK_KEY) as connection:
            if connection is None:
                return 0
            workspace_id = await connection.fetchval(
                _WANTED, self._least_nodes, self._least_changed, self._most_noted
            )
            if workspace_id is None:
                return 0
            async with connection.transaction(isolation="repeatable_read"):
                await self._make(connection, workspace_id)
        return 1

    async def _make(self, connection: Connection, workspace_id: int) -> None:
        """Brings the blocks of a workspace to the state that the transaction sees."""
        started = time.monotonic()
        table = f"node_terms_w{int(workspace_id)}"
        await connection.execute(f"SET LOCAL work_mem = '{_WORK_MEMORY}'")
        blocks = await connection.fetch(_BLOCKS, workspace_id)
        size = await connection.fetchrow(_SIZE.format(table=table), timeout=_BUILD_SECONDS)
        nodes, mean_length = size["nodes"], max(1.0, size["mean_length"] or 1.0)
        if nodes < self._least_nodes or self._wants_all(blocks, nodes, mean_length):
            spans = [_Span(LOWEST, HIGHEST, tuple(row["id"] for row in blocks))]
            # Also those of blocks that are not there, should some have been lost.
            await connection.execute(
                "DELETE FROM term_postings WHERE workspace_id = $1",
                workspace_id,
                timeout=_BUILD_SECONDS,
            )
        else:
            bounds = [row["first_node"] for row in blocks[1:]]
            touched = await connection.fetch(_TOUCHED, workspace_id, bounds)
            spans = spans_of(blocks, [row["place"] for row in touched])
            mean_length = blocks[0]["mean_length"]
        for span in spans:
            await _forget(connection, workspace_id, span.blocks)
            if nodes >= self._least_nodes:
                await self._fill(connection, workspace_id, span, mean_length)
        # Those that the transaction sees, and its blocks cover.
        await connection.execute("DELETE FROM term_changes WHERE workspace_id = $1", workspace_id)
        await connection.execute("ANALYZE term_blocks, term_postings", timeout=_BUILD_SECONDS)
        seconds = round(time.monotonic() - started, 3)
        get_logger().info("term_blocks_made", spans=len(spans), seconds=seconds)

    def _wants_all(
        self, blocks: Sequence[Mapping[str, Any]], nodes: int, mean_length: float
    ) -> bool:
        """Tells whether all are to be made anew: none, other impacts, or many small ones."""
        if not blocks or any(row["recipe"] != RECIPE for row in blocks):
            return True
        drift = abs(mean_length / blocks[0]["mean_length"] - 1)
        return drift > _MOST_DRIFT or len(blocks) > 2 * nodes / self._block_nodes + 1

    async def _fill(
        self, connection: Connection, workspace_id: int, span: _Span, mean_length: float
    ) -> None:
        """Makes the blocks of a span, whose nodes are in none."""
        table = f"node_terms_w{int(workspace_id)}"
        rows = await connection.fetch(
            _STARTS.format(table=table),
            span.first,
            span.last,
            self._block_nodes,
            timeout=_BUILD_SECONDS,
        )
        starts = [row["node_id"] for row in rows]
        for first, last in pairwise([*starts, span.last]):
            block = await connection.fetchval("SELECT nextval('term_block_ids')")
            for statement in (_POSTINGS, _BLOCK):
                await connection.execute(
                    statement.format(table=table),
                    workspace_id,
                    block,
                    first,
                    last,
                    mean_length,
                    timeout=_BUILD_SECONDS,
                )


def spans_of(blocks: Sequence[Mapping[str, Any]], touched: Sequence[int]) -> list[_Span]:
    """Returns the spans of some blocks, neighbours as one.

    A block reaches from its first node to the first of the next one, the outer two to the ends.

    Args:
        blocks: rows with `id` and `first_node`, in the order of these.
        touched: places of the blocks, in ascending order.
    """
    bounds = [LOWEST, *(row["first_node"] for row in blocks[1:]), HIGHEST]
    spans: list[_Span] = []
    for place in touched:
        first, held = bounds[place], (blocks[place]["id"],)
        if spans and spans[-1].last == first:
            before = spans.pop()
            first, held = before.first, (*before.blocks, *held)
        spans.append(_Span(first, bounds[place + 1], held))
    return spans


async def distrust(connection: Connection, workspace_id: int) -> None:
    """Has searches do without a workspace's blocks until all are made anew."""
    await connection.execute(
        "UPDATE term_blocks SET recipe = '' WHERE workspace_id = $1", workspace_id
    )


async def _forget(connection: Connection, workspace_id: int, blocks: Sequence[int]) -> None:
    for statement in (
        "DELETE FROM term_postings WHERE workspace_id = $1 AND block_id = ANY ($2)",
        "DELETE FROM term_blocks WHERE workspace_id = $1 AND id = ANY ($2)",
    ):
        await connection.execute(statement, workspace_id, blocks, timeout=_BUILD_SECONDS)
