"""Rows that disagree: found in the tables, marked, and put back to be done again."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from services.indexer.model import ClaimedNode, NodeId
from services.indexer.search.terms import name_terms
from services.indexer.storage import model_marks, term_index, vector_index
from services.indexer.storage.model_rows import lock_workspace
from services.indexer.storage.partitions import vectors_table
from services.indexer.storage.term_changes import note_changed
from services.runtime.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    import asyncpg

    from services.indexer.model import ModelId, RegisteredModel, WorkspaceId
    from services.indexer.storage.database import Connection, Database

MOST_MARKED_FILES = 10_000
"""Most files that one repair run looks at; the next one takes the rest."""

_TABLES = """
SELECT n.id, f.path, n.qualified_name, t.name_terms, CASE
    WHEN n.status <> 'embedded' AND (v.node_id IS NOT NULL OR t.node_id IS NOT NULL)
      THEN 'not_embedded_but_indexed'
    WHEN n.status <> 'embedded' THEN NULL
    WHEN v.node_id IS NULL THEN 'vector_missing'
    WHEN v.content_hash <> n.content_hash THEN 'vector_of_other_text'
    WHEN t.node_id IS NULL THEN 'terms_missing'
    WHEN c.embedding IS NOT NULL AND c.embedding <> v.embedding::halfvec THEN 'vector_wrong'
    WHEN ct.terms IS NOT NULL AND (ct.terms, ct.counts, ct.length) <> (t.terms, t.counts, t.length)
      THEN 'terms_wrong'
  END AS kind
FROM nodes n
JOIN files f ON f.workspace_id = n.workspace_id AND f.id = n.file_id
LEFT JOIN {table} v ON v.workspace_id = n.workspace_id AND v.node_id = n.id
LEFT JOIN node_terms t ON t.workspace_id = n.workspace_id AND t.node_id = n.id
LEFT JOIN embedding_cache c ON c.model_id = $2 AND c.content_hash = n.content_hash
LEFT JOIN content_terms ct ON ct.content_hash = n.content_hash
WHERE n.workspace_id = $1 AND n.id > $3 ORDER BY n.id LIMIT $4
"""

_HOLD_MARKED = """
SELECT FROM nodes WHERE workspace_id = $1 AND id IN (
  SELECT node_id FROM index_marks WHERE workspace_id = $1 AND node_id > 0
  UNION ALL SELECT node_id FROM model_marks WHERE workspace_id = $1)
ORDER BY id FOR UPDATE
"""
_MARKED = """
SELECT id, content_hash, NOT EXISTS (
    SELECT FROM index_marks m WHERE m.workspace_id = $1 AND m.node_id = nodes.id
      AND m.kind <> 'names_wrong')
  AND NOT EXISTS (
    SELECT FROM model_marks m WHERE m.workspace_id = $1 AND m.node_id = nodes.id) AS names_alone
FROM nodes WHERE workspace_id = $1 AND id IN (
  SELECT node_id FROM index_marks WHERE workspace_id = $1 AND node_id > 0
  UNION ALL SELECT node_id FROM model_marks WHERE workspace_id = $1 AND model_id = $2)
ORDER BY id FOR UPDATE
"""

_SAMPLE = """
SELECT n.id, n.fence, n.content_hash, f.path, f.digest, n.qualified_name,
  coalesce(n.segments, ARRAY[n.start_byte, n.end_byte]) AS ranges, v.embedding, t.terms, t.counts,
  t.length
FROM nodes n JOIN files f ON f.workspace_id = n.workspace_id AND f.id = n.file_id
JOIN {table} v ON v.workspace_id = n.workspace_id AND v.node_id = n.id
LEFT JOIN node_terms t ON t.workspace_id = n.workspace_id AND t.node_id = n.id
WHERE n.workspace_id = $1 AND n.id > $2
  AND (hashint8(n.id) & 65535) < $3::float8 * 65536
ORDER BY n.id LIMIT $4
"""

_MARK = """
INSERT INTO index_marks (workspace_id, path, node_id, kind)
SELECT $1, * FROM unnest($2::text[], $3::bigint[], $4::text[])
ON CONFLICT (workspace_id, path, node_id) DO UPDATE SET kind = excluded.kind, created_at = now()
"""
_CLEAR_FILES = """
DELETE FROM index_marks m USING unnest($2::text[], $3::timestamptz[]) v (path, created_at)
WHERE m.workspace_id = $1 AND m.node_id = 0 AND m.path = v.path AND m.created_at = v.created_at
"""


class Disagreement(StrEnum):
    """What disagrees."""

    FILE_CHANGED = "file_changed"
    FILE_GONE = "file_gone"
    FILE_MISSING = "file_missing"
    FILE_UNREADABLE = "file_unreadable"
    FILE_WRONG = "file_wrong"
    NODES_DIFFER = "nodes_differ"
    PARENTS_WRONG = "parents_wrong"
    REFERENCES_WRONG = "references_wrong"
    NOT_EMBEDDED_BUT_INDEXED = "not_embedded_but_indexed"
    VECTOR_MISSING = "vector_missing"
    VECTOR_OF_OTHER_TEXT = "vector_of_other_text"
    VECTOR_WRONG = "vector_wrong"
    TERMS_MISSING = "terms_missing"
    TERMS_WRONG = "terms_wrong"
    NAMES_WRONG = "names_wrong"
    POSTINGS_WRONG = "postings_wrong"
    LISTS_WRONG = "lists_wrong"
    QUEUE_WRONG = "queue_wrong"


_POSTINGS, _LISTS, _QUEUE = -1, -2, -3
"""In the place of a node, without path: the one mark of a workspace's postings, which are made
anew all or none, that of the index over its vectors, and that of what its models' queues have of
nothing that waits."""

_OF_VECTORS = {
    Disagreement.VECTOR_MISSING,
    Disagreement.VECTOR_OF_OTHER_TEXT,
    Disagreement.VECTOR_WRONG,
}

_WHOLES = {
    Disagreement.POSTINGS_WRONG: _POSTINGS,
    Disagreement.LISTS_WRONG: _LISTS,
    Disagreement.QUEUE_WRONG: _QUEUE,
}


@dataclass(frozen=True, slots=True)
class Mark:
    """A row that disagrees; `node_id` is 0 for the file itself."""

    path: str
    kind: Disagreement
    node_id: int = 0
    qualified_name: str = ""
    nodes: int = 0
    """How many nodes of a block of postings disagree, of which the fields above tell one, or how
    many rows of queues."""
    model: RegisteredModel | None = None
    """The model whose vector disagrees; None for files, terms and what the active model awaits."""

    @property
    def key(self) -> tuple[str, int]:
        """The path and node that it is kept under."""
        whole = _WHOLES.get(self.kind)
        return (self.path, self.node_id) if whole is None else ("", whole)


@dataclass(frozen=True, slots=True)
class SampledNode:
    """An embedded node with its vector and the terms of its text as the tables have them."""

    node: ClaimedNode
    vector: Sequence[float]
    terms: Sequence[str] | None
    """None for a node without any."""
    counts: Sequence[int]
    """How often each of the terms occurs."""
    length: int
    """How often all of them do together."""


class MarkStore:
    """Compares tables with each other, and keeps marks."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def compare_tables(
        self,
        workspace_id: WorkspaceId,
        model: RegisteredModel,
        after: int,
        limit: int,
        *,
        active: bool = True,
    ) -> tuple[list[Mark], int, int]:
        """Returns what disagrees in a page of nodes, how many were looked at, and the last id.

        Of a model beside the active one vectors alone are looked at.
        """
        sql = (_TABLES if active else model_marks.BESIDE).format(table=vectors_table(model.id))
        async with self._database.connection() as connection:
            rows = await connection.fetch(sql, workspace_id, model.id, after, limit)
        kinds = await asyncio.to_thread(lambda: list(map(_kind_of, rows)))
        marks = [
            Mark(row["path"], kind, row["id"], row["qualified_name"], model=of)
            for row, kind in zip(rows, kinds, strict=True)
            if kind is not None
            for of in (None if active and kind not in _OF_VECTORS else model,)
        ]
        return marks, len(rows), rows[-1]["id"] if rows else after

    async def compare_queues(self, workspace_id: WorkspaceId) -> Mark | None:
        """Returns what the queues of a workspace's models have of nothing that waits."""
        async with self._database.connection() as connection:
            rows = await model_marks.count_left_over(connection, workspace_id)
        return Mark("", Disagreement.QUEUE_WRONG, nodes=rows) if rows else None

    async def sample(
        self,
        workspace_id: WorkspaceId,
        model_id: ModelId,
        ratio: float,
        after: int,
        limit: int,
    ) -> list[SampledNode]:
        """Returns embedded nodes of a stable sample, those after an id."""
        sql = _SAMPLE.format(table=vectors_table(model_id))
        async with self._database.connection() as connection:
            rows = await connection.fetch(sql, workspace_id, after, ratio, limit)
        return [
            SampledNode(
                ClaimedNode(
                    id=NodeId(row["id"]),
                    fence=row["fence"],
                    attempt=0,
                    content_hash=row["content_hash"],
                    path=row["path"],
                    digest=row["digest"],
                    qualified_name=row["qualified_name"],
                    ranges=tuple(row["ranges"]),
                ),
                row["embedding"].to_list(),
                row["terms"],
                row["counts"] or (),
                row["length"] or 0,
            )
            for row in rows
        ]

    async def mark(self, workspace_id: WorkspaceId, marks: Sequence[Mark]) -> None:
        """Marks rows for a repair run; marking twice is marking once.

        Waits for one that is putting marked nodes back: what it did not read is not its to clear.

        Raises:
            NotFoundError: the workspace was deleted.
        """
        rows = {mark.key: mark for mark in marks if mark.model is None}
        vectors = {(mark.model.id, mark.node_id): mark for mark in marks if mark.model is not None}
        async with self._database.transaction() as connection:
            if not await lock_workspace(connection, workspace_id):
                raise NotFoundError("The workspace was deleted meanwhile.")
            await connection.execute(
                _MARK,
                workspace_id,
                [path for path, _ in rows],
                [node for _, node in rows],
                [mark.kind.value for mark in rows.values()],
            )
            await model_marks.mark(
                connection,
                workspace_id,
                [(*key, mark.kind.value) for key, mark in vectors.items()],
            )

    async def marked_files(
        self, workspace_id: WorkspaceId
    ) -> tuple[dict[str, datetime], list[str]]:
        """Returns the files that a repair run is to look at, in order, and what it warns of.

        Each comes with the time of its mark.
        """
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                "SELECT path, created_at FROM index_marks WHERE workspace_id = $1 AND node_id = 0 "
                "ORDER BY path LIMIT $2",
                workspace_id,
                MOST_MARKED_FILES + 1,
            )
        files = {row["path"]: row["created_at"] for row in rows[:MOST_MARKED_FILES]}
        if len(rows) <= MOST_MARKED_FILES:
            return files, []
        warning = f"More than {MOST_MARKED_FILES} files are marked: another repair run is needed."
        return files, [warning]

    async def clear_files(
        self, workspace_id: WorkspaceId, looked_at: Mapping[str, datetime]
    ) -> None:
        """Removes marks of files that were looked at, by their times: later ones stay."""
        async with self._database.connection() as connection:
            await connection.execute(
                _CLEAR_FILES, workspace_id, list(looked_at), list(looked_at.values())
            )


def _kind_of(row: asyncpg.Record) -> Disagreement | None:
    """Returns what disagrees of a row of a page; terms of a name are cut here alone."""
    if row["kind"] is not None:
        return Disagreement(row["kind"])
    terms = row["name_terms"]
    if terms is not None and tuple(terms) != name_terms(row["path"], row["qualified_name"]):
        return Disagreement.NAMES_WRONG
    return None


async def put_back(
    connection: Connection, workspace_id: WorkspaceId, model_id: ModelId
) -> list[NodeId]:
    """Sends marked nodes back to the queue without vector and terms; returns them, marks cleared.

    Inside a transaction that has the workspace locked. Nodes whose vector of another model is
    marked are locked, and left to `model_marks.put_back`. What the cache holds of their texts goes
    too: it may be what is wrong, save where the terms of their names alone are. Blocks of postings
    that are marked, and an index over vectors, are not read any more, and made anew after the run.
    """
    await connection.execute(_HOLD_MARKED, workspace_id)
    wholes = await connection.fetch(
        "DELETE FROM index_marks WHERE workspace_id = $1 AND node_id < 0 RETURNING node_id",
        workspace_id,
    )
    for row in wholes:
        if row["node_id"] == _POSTINGS:
            await term_index.distrust(connection, workspace_id)
        elif row["node_id"] == _LISTS:
            await vector_index.distrust(connection, workspace_id, model_id)
        else:
            await model_marks.forget_left_over(connection, workspace_id)
    rows = await connection.fetch(_MARKED, workspace_id, model_id)
    nodes = [NodeId(row["id"]) for row in rows]
    hashes = [row["content_hash"] for row in rows if not row["names_alone"]]
    await note_changed(connection, workspace_id, nodes)
    await model_marks.forget_vectors(connection, workspace_id, model_id, nodes, hashes)
    await connection.execute(
        "DELETE FROM node_terms WHERE workspace_id = $1 AND node_id = ANY ($2)",
        workspace_id,
        nodes,
    )
    await connection.execute("DELETE FROM content_terms WHERE content_hash = ANY ($1)", hashes)
    await connection.execute(
        """
        UPDATE nodes SET status = 'pending', attempt = 0, crash_count = 0, available_at = now(),
          embedded_run = NULL, error_reason = NULL, error_message = NULL, updated_at = now(),
          status_since = now()
        WHERE workspace_id = $1 AND id = ANY ($2) AND status IN ('embedded', 'failed')
        """,
        workspace_id,
        nodes,
    )
    await connection.execute(
        "DELETE FROM index_marks WHERE workspace_id = $1 AND node_id > 0", workspace_id
    )
    await connection.execute(
        "DELETE FROM model_marks WHERE workspace_id = $1 AND model_id = $2", workspace_id, model_id
    )
    return nodes
