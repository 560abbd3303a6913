"""Rows of nodes: those that a file holds, moved, added and removed to follow a parse."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from services.indexer.model import FileId, NodeId, NodeKind, StoredNode
from services.indexer.plan import FilePlan, match_nodes
from services.indexer.run import RunCounters
from services.indexer.search.terms import name_terms
from services.indexer.storage.model_rows import unqueue_for_models
from services.indexer.storage.term_changes import note_changed, noted
from services.indexer.transitions import NodeStatus

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import asyncpg

    from services.indexer.model import ParsedFile, ParsedNode, WorkspaceId
    from services.indexer.run import Run
    from services.indexer.storage.database import Connection

_NODE_COLUMNS = (
    "workspace_id",
    "id",
    "file_id",
    "generation",
    "ordinal",
    "parent_id",
    "kind",
    "qualified_name",
    "start_byte",
    "end_byte",
    "start_line",
    "end_line",
    "segments",
    "part",
    "part_count",
    "token_estimate",
    "content_hash",
)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file's row; its generation is 1 when it is new."""

    id: FileId
    generation: int


@dataclass(frozen=True, slots=True)
class Placed:
    """A parsed file with its row, its plan, and an id for each of its nodes."""

    file: ParsedFile
    row: StoredFile
    plan: FilePlan
    ids: tuple[NodeId, ...]


async def stored_nodes(
    connection: Connection, workspace_id: WorkspaceId, files: Sequence[StoredFile]
) -> dict[FileId, list[StoredNode]]:
    """Returns what the database holds of files, locked; nothing of those that are new."""
    known = [item.id for item in files if item.generation > 1]
    nodes: dict[FileId, list[StoredNode]] = {item.id: [] for item in files}
    for row in await lock_nodes(connection, workspace_id, known):
        nodes[FileId(row["file_id"])].append(
            StoredNode(
                NodeId(row["id"]),
                NodeKind(row["kind"]),
                row["qualified_name"],
                row["part"],
                row["content_hash"],
            )
        )
    return nodes


async def lock_nodes(
    connection: Connection, workspace_id: WorkspaceId, files: Sequence[FileId]
) -> Sequence[asyncpg.Record]:
    """Returns the nodes of files, locked in the order of their ids as all others lock them."""
    if not files:
        return ()
    rows: Sequence[asyncpg.Record] = await connection.fetch(
        """
        SELECT file_id, id, kind, qualified_name, part, content_hash FROM nodes
        WHERE workspace_id = $1 AND file_id = ANY ($2) ORDER BY id FOR UPDATE
        """,
        workspace_id,
        files,
    )
    return rows


async def place(
    connection: Connection,
    files: Sequence[ParsedFile],
    rows: Mapping[str, StoredFile],
    stored: Mapping[FileId, Sequence[StoredNode]],
) -> list[Placed]:
    """Returns each file with its plan and an id for each node, new ones where it is a new node."""
    plans = [match_nodes(item.nodes, stored[rows[item.path].id]) for item in files]
    wanted = sum(plan.kept.count(None) for plan in plans)
    fresh = iter(
        await connection.fetch("SELECT nextval('node_ids') FROM generate_series(1, $1)", wanted)
    )
    return [
        Placed(
            item,
            rows[item.path],
            plan,
            tuple(NodeId(next(fresh)[0]) if kept is None else kept for kept in plan.kept),
        )
        for item, plan in zip(files, plans, strict=True)
    ]


_REMOVE = """
DELETE FROM nodes n WHERE workspace_id = $1 AND id = ANY ($2)
RETURNING status, status = 'embedded' AND embedded_run IS NOT DISTINCT FROM $3 AS own,
  $4 OR EXISTS (SELECT 1 FROM run_nodes
    WHERE workspace_id = $1 AND run_id = $3 AND node_id = n.id) AS covered
"""
"""Also tells which of them the run counts, and which it embedded itself."""


async def remove_nodes(connection: Connection, run: Run, nodes: Sequence[NodeId]) -> RunCounters:
    """Removes locked nodes with vectors and terms; returns what that does to a run's counters."""
    if not nodes:
        return RunCounters()
    await unqueue_for_models(connection, run.workspace_id, nodes)
    await note_changed(connection, run.workspace_id, nodes)
    removed = await connection.fetch(_REMOVE, run.workspace_id, nodes, run.id, not run.is_scoped)
    counted = [row for row in removed if row["covered"]]
    by_status = Counter(NodeStatus(row["status"]) for row in counted)
    own = sum(row["own"] for row in counted)
    return RunCounters(
        nodes_removed=len(removed),
        nodes_total=-len(counted),
        nodes_pending=-by_status[NodeStatus.PENDING] - by_status[NodeStatus.PROCESSING],
        nodes_embedded=-own,
        nodes_reused=own - by_status[NodeStatus.EMBEDDED],
        nodes_failed=-by_status[NodeStatus.FAILED],
    )


def _record(
    workspace_id: WorkspaceId, item: Placed, ordinal: int, node: ParsedNode
) -> tuple[Any, ...]:
    return (
        workspace_id,
        item.ids[ordinal],
        item.row.id,
        item.row.generation,
        ordinal,
        None if node.parent is None else item.ids[node.parent],
        node.kind.value,
        node.qualified_name,
        node.start_byte,
        node.end_byte,
        node.start_line,
        node.end_line,
        None if node.segments is None else list(node.segments),
        node.part,
        node.part_count,
        node.token_estimate,
        node.content_hash,
    )


_TAKE_BACK_RENAMED = """
UPDATE nodes n SET status = 'pending', attempt = greatest(n.attempt - 1, 0), lease_owner = NULL,
  lease_until = NULL, updated_at = now(), status_since = now()
FROM unnest($2::bigint[], $3::text[]) v (id, name)
WHERE n.workspace_id = $1 AND n.id = v.id AND n.status = 'processing'
  AND n.qualified_name <> v.name
"""
"""Of claims, as whoever has one would commit the terms of the name that it knows."""


async def update_kept(
    connection: Connection, workspace_id: WorkspaceId, placed: Sequence[Placed]
) -> None:
    """Moves kept nodes to their new place; their text is the same, so their vector stays."""
    kept = [
        (item, ordinal, node)
        for item in placed
        for ordinal, node in enumerate(item.file.nodes)
        if item.plan.kept[ordinal] is not None
    ]
    if not kept:
        return
    await connection.execute(
        _TAKE_BACK_RENAMED,
        workspace_id,
        [item.ids[ordinal] for item, ordinal, _ in kept],
        [node.qualified_name for _, _, node in kept],
    )
    await connection.executemany(
        """
        UPDATE nodes SET generation = $4, ordinal = $5, parent_id = $6, kind = $7,
          qualified_name = $8, start_byte = $9, end_byte = $10, start_line = $11, end_line = $12,
          segments = $13, part = $14, part_count = $15, token_estimate = $16, updated_at = now()
        WHERE workspace_id = $1 AND id = $2 AND file_id = $3 AND content_hash = $17
        """,
        [_record(workspace_id, *place) for place in kept],
    )
    await connection.execute(
        f"""
        WITH renamed AS (
          UPDATE node_terms t SET name_terms = string_to_array(v.names, ' ')
          FROM unnest($2::bigint[], $3::text[]) v (id, names)
          WHERE t.workspace_id = $1 AND t.node_id = v.id
            AND t.name_terms IS DISTINCT FROM string_to_array(v.names, ' ')
          RETURNING t.node_id AS id),
        {noted("renamed")}
        SELECT
        """,
        workspace_id,
        [item.ids[ordinal] for item, ordinal, _ in kept],
        [" ".join(_names(item, node)) for item, _, node in kept],
    )


async def insert_new(
    connection: Connection, workspace_id: WorkspaceId, placed: Sequence[Placed]
) -> dict[NodeId, tuple[str, ...]]:
    """Inserts new nodes as pending; returns their ids with the terms of their names."""
    records, names = [], {}
    for item in placed:
        for ordinal, node in enumerate(item.file.nodes):
            if item.plan.kept[ordinal] is None:
                records.append(_record(workspace_id, item, ordinal, node))
                names[item.ids[ordinal]] = _names(item, node)
    if records:
        await connection.copy_records_to_table("nodes", records=records, columns=_NODE_COLUMNS)
    return names


def _names(item: Placed, node: ParsedNode) -> tuple[str, ...]:
    return name_terms(item.file.path, node.qualified_name)
