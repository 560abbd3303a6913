"""Reads the postings of a question's terms, and which nodes changed since they were made."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass
from sys import intern
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from services.indexer.search.postings import RECIPE, Block, count, score
from services.indexer.search.weights import DEFAULTS
from services.indexer.storage.term_notes import Noted, NotedTerms

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import asyncpg

    from services.indexer.model import WorkspaceId
    from services.indexer.search.postings import Candidates, Changes, Ids, TermCounts
    from services.indexer.search.weights import Ranking
    from services.indexer.storage.database import Connection, Database

T = TypeVar("T")

_KNOWN_SECONDS = 5.0
"""How long a replica may take a workspace to have no blocks: it is slower, not wrong."""

_MOST_KEPT_BLOCKS = 256
"""Blocks whose ids of nodes are kept: 256 KiB each, of 32,768 nodes."""

_MOST_BLOCKS_AT_ONCE = 4
"""Blocks that are scored in a millisecond or two; more of them leave the loop to others."""

_MOST_CHANGED = 20_000
"""A workspace with more nodes in its notes is searched without its blocks until they are made."""

_READ_AT_ONCE = 500
"""Nodes whose notes are read at once, so that the loop is not held up: some 10 milliseconds."""

_MOST_KEPT_NOTES = 20_000
"""Nodes, over all workspaces, whose terms are kept while they are noted: some 3 KiB each."""

_MOST_TRIES = 3
"""Times that a search follows blocks that are replaced while it reads."""

READ = f"""
WITH notes AS MATERIALIZED (
  SELECT seq, nodes FROM term_changes WHERE workspace_id = $1),
total AS MATERIALIZED (
  SELECT array_agg(seq) AS seqs, coalesce(sum(cardinality(nodes)), 0)::int AS nodes FROM notes),
unread AS MATERIALIZED (
  SELECT seq, nodes FROM (
    SELECT seq, nodes, sum(cardinality(nodes)) OVER (ORDER BY seq) - cardinality(nodes) AS before
    FROM notes WHERE seq <> ALL ($3::bigint[])) numbered
  WHERE before < $4 AND (SELECT nodes FROM total) <= {_MOST_CHANGED}),
changed AS MATERIALIZED (SELECT DISTINCT node FROM unread, unnest(nodes) node)
SELECT b.id AS block, b.mean_length, b.recipe, NULL::text AS term, NULL::bytea AS entries,
  NULL::bigint[] AS seqs, NULL::bigint[] AS nodes, NULL::bigint AS node, NULL::int AS length,
  NULL::text[] AS terms, NULL::int[] AS counts, NULL::text[] AS name_terms
FROM term_blocks b WHERE b.workspace_id = $1
UNION ALL
SELECT p.block_id, NULL, NULL, p.term, p.entries, NULL, NULL, NULL, NULL, NULL, NULL, NULL
FROM term_postings p WHERE p.workspace_id = $1 AND p.term = ANY ($2)
UNION ALL
SELECT NULL, NULL, NULL, NULL, NULL, seqs, NULL, NULL, nodes, NULL, NULL, NULL FROM total
UNION ALL
SELECT NULL, NULL, NULL, NULL, NULL, ARRAY[seq], nodes, NULL, NULL, NULL, NULL, NULL FROM unread
UNION ALL
SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, c.node, x.length, x.terms, x.counts, x.name_terms
FROM changed c LEFT JOIN {{table}} x ON x.workspace_id = $1 AND x.node_id = c.node
"""
"""All in one statement: blocks, their entries and changes are of one state."""

_NODES = "SELECT id, node_ids FROM term_blocks WHERE workspace_id = $1 AND id = ANY ($2)"


@dataclass(frozen=True, slots=True)
class _Read:
    """What the statement gave."""

    means: Mapping[int, float]
    entries: Mapping[int, Mapping[str, bytes]]
    noted: Noted
    is_whole: bool
    """Whether there are no more notes than these."""


class TermBlocks:
    """Scores the nodes of workspaces that have blocks of postings.

    Args:
        database: where they are.
        clock: seconds that only grow.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._without: dict[WorkspaceId, float] = {}
        self._nodes: OrderedDict[int, Ids] = OrderedDict()
        """Ids of nodes by block: a block never changes, so what is kept of it never is old."""
        self._noted: OrderedDict[WorkspaceId, Noted] = OrderedDict()

    async def candidates(
        self,
        workspace_id: WorkspaceId,
        terms: Sequence[str],
        ranking: Ranking = DEFAULTS,
        counts: TermCounts | None = None,
    ) -> Candidates | None:
        """Returns all nodes that hold one of the rarer terms, scored.

        None when there are no blocks, or more changed since they were made than is worth it.
        """
        return await self._of_blocks(
            workspace_id,
            terms,
            lambda blocks, changes: score(terms, blocks, changes, ranking, counts),
        )

    async def counts(self, workspace_id: WorkspaceId, terms: Sequence[str]) -> TermCounts | None:
        """Returns what terms are weighed by; None as `candidates`."""
        return await self._of_blocks(
            workspace_id, terms, lambda blocks, changes: count(terms, blocks, changes)
        )

    async def _of_blocks(
        self,
        workspace_id: WorkspaceId,
        terms: Sequence[str],
        make: Callable[[Sequence[Block], Changes], T],
    ) -> T | None:
        """Returns what is made of the blocks of some terms; None as `candidates`."""
        if self._clock() < self._without.get(workspace_id, 0.0):
            return None
        known = self._noted.get(workspace_id, Noted())
        tries = 0
        while tries < _MOST_TRIES:
            async with self._database.connection() as connection:
                read = await _read(connection, workspace_id, terms, known)
                if read is None:
                    self._without[workspace_id] = self._clock() + _KNOWN_SECONDS
                    self._noted.pop(workspace_id, None)
                    return None
                known = read.noted
                self._keep(workspace_id, known)
                if not read.is_whole:
                    continue
                nodes = await self._nodes_of(connection, workspace_id, list(read.means))
            tries += 1
            if nodes is not None:
                self._without.pop(workspace_id, None)
                blocks = [
                    Block(nodes[block], mean, read.entries.get(block, {}))
                    for block, mean in read.means.items()
                ]
                changes = known.changes(terms)
                if len(blocks) <= _MOST_BLOCKS_AT_ONCE:
                    return make(blocks, changes)
                return await asyncio.to_thread(make, blocks, changes)
        return None

    def _keep(self, workspace_id: WorkspaceId, noted: Noted) -> None:
        """Keeps notes, those of the workspaces that were asked last, within bounds."""
        self._noted[workspace_id] = noted
        self._noted.move_to_end(workspace_id)
        while sum(len(each.nodes) for each in self._noted.values()) > _MOST_KEPT_NOTES:
            self._noted.popitem(last=False)

    async def _nodes_of(
        self, connection: Connection, workspace_id: WorkspaceId, blocks: Sequence[int]
    ) -> Mapping[int, Ids] | None:
        """Returns the ids of nodes by block; None when a block was replaced meanwhile."""
        missing = [block for block in blocks if block not in self._nodes]
        found = {block: self._nodes[block] for block in blocks if block in self._nodes}
        if missing:
            for row in await connection.fetch(_NODES, workspace_id, missing):
                ids = np.frombuffer(row["node_ids"], dtype=">i8").astype(np.int64)
                found[row["id"]] = self._nodes[row["id"]] = ids
        for block in found:
            self._nodes.move_to_end(block)
        while len(self._nodes) > _MOST_KEPT_BLOCKS:
            self._nodes.popitem(last=False)
        return found if len(found) == len(blocks) else None


async def _read(
    connection: Connection, workspace_id: WorkspaceId, terms: Sequence[str], known: Noted
) -> _Read | None:
    """Returns blocks, entries and notes; None when there are no blocks or too many changes."""
    statement = READ.format(table=f"node_terms_w{int(workspace_id)}")
    means: dict[int, float] = {}
    entries: dict[int, dict[str, bytes]] = {}
    seqs: Sequence[int] = ()
    new: dict[int, Sequence[int]] = {}
    changed: dict[int, NotedTerms | None] = {}
    for row in await connection.fetch(
        statement, workspace_id, list(terms), list(known.notes), _READ_AT_ONCE
    ):
        if row["node"] is not None:
            changed[row["node"]] = _terms_of(row)
        elif row["nodes"] is not None:
            new[row["seqs"][0]] = row["nodes"]
        elif row["term"] is not None:
            entries.setdefault(row["block"], {})[row["term"]] = row["entries"]
        elif row["block"] is None:
            if row["length"] > _MOST_CHANGED:
                return None
            seqs = row["seqs"] or ()
        elif row["recipe"] == RECIPE:
            means[row["block"]] = row["mean_length"]
        else:
            return None
    if not means:
        return None
    held = [seq for seq in seqs if seq in new or seq in known.notes]
    noted = known.advanced(held, new, changed)
    return _Read(means, entries, noted, is_whole=len(held) == len(seqs))


def _terms_of(row: asyncpg.Record) -> NotedTerms | None:
    """Returns the terms of a node, None when it is gone."""
    if row["length"] is None:
        return None
    return NotedTerms.of(
        row["length"], list(map(intern, row["terms"])), row["counts"], row["name_terms"]
    )
