"""Holds blocks of postings to the terms that they were made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from services.indexer.search.postings import RECIPE
from services.indexer.storage.marks import Disagreement, Mark
from services.indexer.storage.term_index import ENTRIES, HIGHEST, LOWEST

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    import asyncpg
    from numpy.typing import NDArray

    from services.indexer.model import WorkspaceId
    from services.indexer.search.postings import Flags, Ids
    from services.indexer.storage.database import Connection, Database

_COMPARE_SECONDS = 600.0
_WORK_MEMORY = "64MB"

_NEXT_BLOCK = """
SELECT b.id, b.first_node, b.mean_length, b.node_ids, (
  SELECT min(l.first_node) FROM term_blocks l WHERE l.workspace_id = b.workspace_id
    AND (l.first_node, l.id) > (b.first_node, b.id)) AS last
FROM term_blocks b WHERE b.workspace_id = $1 AND (b.first_node, b.id) > ($2, $3)
  AND NOT EXISTS (SELECT FROM term_blocks o WHERE o.workspace_id = $1 AND o.recipe <> $4)
ORDER BY b.first_node, b.id LIMIT 1
"""
"""Searches read no blocks while one of them is of another recipe."""

_NOTED = """
SELECT DISTINCT node FROM term_changes c, unnest(c.nodes) node
WHERE c.workspace_id = $1 AND node = ANY ($2)
"""
_GONE = """
SELECT node FROM unnest($1::bigint[]) node
WHERE NOT EXISTS (SELECT FROM {table} t WHERE t.node_id = node AND t.node_id >= $2
  AND t.node_id < $3)
"""
_LACKED = """
SELECT count(*) AS nodes, min(t.node_id) AS first FROM {table} t
WHERE t.node_id >= $3 AND t.node_id < $4
  AND NOT EXISTS (SELECT FROM unnest($2::bigint[]) node WHERE node = t.node_id)
  AND NOT EXISTS (SELECT FROM term_changes c, unnest(c.nodes) node
    WHERE c.workspace_id = $1 AND node = t.node_id)
"""
_DIFFERENT = f"""
SELECT made.entries AS made, kept.entries AS kept
FROM ({
    ENTRIES.format(
        placed='''
SELECT i.place - 1 AS place, t.terms, t.counts, t.name_terms, t.length
FROM unnest($3::bigint[]) WITH ORDINALITY i (node, place) JOIN {table} t ON t.node_id = i.node
''',
        mean_length="$4",
    )
}) made
FULL JOIN (SELECT term, entries FROM term_postings WHERE workspace_id = $1 AND block_id = $2) kept
  ON kept.term = made.term
WHERE made.entries IS DISTINCT FROM kept.entries
"""
"""Entries of terms as a block would be made now, and as it has them, where these differ."""

_NAMED = """
SELECT f.path, n.qualified_name FROM nodes n
JOIN files f ON f.workspace_id = n.workspace_id AND f.id = n.file_id
WHERE n.workspace_id = $1 AND n.id = ANY ($2) ORDER BY n.id LIMIT 1
"""


@dataclass(frozen=True, slots=True)
class ComparedBlock:
    """How many nodes a block has, and what disagrees in it."""

    nodes: int
    mark: Mark | None


@dataclass(frozen=True, slots=True)
class _Block:
    id: int
    first_node: int
    lowest: int
    """The first id that the block is to answer for."""
    last: int
    """The first id that it is not to answer for any more."""
    mean_length: float
    nodes: Ids


class PostingsTruth:
    """Compares blocks with the terms of nodes, one block after the other.

    Nodes that are noted as changed are left out: searches read these from their terms. Memory is
    that of one block, whatever the size of the workspace.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def compare(self, workspace_id: WorkspaceId) -> AsyncIterator[ComparedBlock]:
        """Yields after each block; each is seen in one state of the database."""
        after = (LOWEST, 0)
        while True:
            async with self._database.snapshot() as connection:
                block = await _block_after(connection, workspace_id, after)
                if block is None:
                    return
                mark = await _compare(connection, workspace_id, block)
            yield ComparedBlock(len(block.nodes), mark)
            after = (block.first_node, block.id)


async def _block_after(
    connection: Connection, workspace_id: WorkspaceId, after: tuple[int, int]
) -> _Block | None:
    row = await connection.fetchrow(_NEXT_BLOCK, workspace_id, *after, RECIPE)
    if row is None:
        return None
    return _Block(
        row["id"],
        row["first_node"],
        LOWEST if after[0] == LOWEST else row["first_node"],
        HIGHEST if row["last"] is None else row["last"],
        row["mean_length"],
        np.frombuffer(row["node_ids"], dtype=">i8").astype(np.int64),
    )


async def _compare(connection: Connection, workspace_id: WorkspaceId, block: _Block) -> Mark | None:
    """Returns how many nodes of a block disagree, None when none does."""
    table = f"node_terms_w{int(workspace_id)}"
    span = (block.lowest, block.last)
    nodes = block.nodes.tolist()
    await connection.execute(f"SET LOCAL work_mem = '{_WORK_MEMORY}'")
    noted = await connection.fetch(_NOTED, workspace_id, nodes, timeout=_COMPARE_SECONDS)
    gone = await connection.fetch(_GONE.format(table=table), nodes, *span, timeout=_COMPARE_SECONDS)
    lacked = await connection.fetchrow(
        _LACKED.format(table=table), workspace_id, nodes, *span, timeout=_COMPARE_SECONDS
    )
    different = await connection.fetch(
        _DIFFERENT.format(table=table),
        workspace_id,
        block.id,
        nodes,
        block.mean_length,
        timeout=_COMPARE_SECONDS,
    )
    found, unreadable = different_places(different, len(nodes))
    found |= np.isin(block.nodes, _ids(gone))
    wrong = found & ~np.isin(block.nodes, _ids(noted))
    count = int(np.count_nonzero(wrong)) + lacked["nodes"] + unreadable
    if not count:
        return None
    examples = [*block.nodes[wrong].tolist(), *([lacked["first"]] if lacked["nodes"] else [])]
    named = await connection.fetchrow(_NAMED, workspace_id, examples)
    path, name = ("", "") if named is None else named
    return Mark(path, Disagreement.POSTINGS_WRONG, qualified_name=name, nodes=count)


def different_places(rows: Iterable[asyncpg.Record], nodes: int) -> tuple[Flags, int]:
    """Returns which places of a block have other entries than they should, by term.

    Args:
        rows: `made` and `kept` entries of a term, None for no row.
        nodes: how many the block has.

    Returns:
        Flags of shape (nodes,), and how many entries are of no place, or of half a one.
    """
    flags = np.zeros(nodes, dtype=np.bool_)
    unreadable = 0
    for row in rows:
        made, kept = row["made"] or b"", row["kept"] or b""
        whole = len(kept) - len(kept) % 4
        unreadable += whole != len(kept)
        pairs = np.concatenate((_pairs(made), _pairs(kept[:whole])))
        values, times = np.unique(pairs, return_counts=True)
        places = values[times != 2] >> 16
        unreadable += int(np.count_nonzero(places >= nodes))
        flags[places[places < nodes]] = True
    return flags, unreadable


def _pairs(entries: bytes) -> NDArray[np.uint32]:
    return np.frombuffer(entries, dtype=">u4").astype(np.uint32)


def _ids(rows: Iterable[asyncpg.Record]) -> Ids:
    return np.array([row["node"] for row in rows], dtype=np.int64)
