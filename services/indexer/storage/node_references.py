"""Rows of what nodes refer to: written with the nodes, gone with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.indexer.model import WorkspaceId
    from services.indexer.storage.database import Connection
    from services.indexer.storage.node_rows import Placed

_COLUMNS = (
    "workspace_id",
    "node_id",
    "ordinal",
    "file_id",
    "kind",
    "name",
    "qualifier",
    "alias",
    "line",
)


async def write_references(
    connection: Connection, workspace_id: WorkspaceId, placed: Sequence[Placed]
) -> None:
    """Makes the database hold what the nodes of parsed files refer to, and nothing they did before.

    What new nodes refer to is added; that of kept nodes is written anew, as it may have moved.
    """
    kept = [node for item in placed for node in item.plan.kept if node is not None]
    if kept:
        await connection.execute(
            "DELETE FROM node_references WHERE workspace_id = $1 AND node_id = ANY ($2)",
            workspace_id,
            kept,
        )
    records = [
        (
            workspace_id,
            item.ids[reference.node],
            ordinal,
            item.row.id,
            reference.kind.value,
            reference.name,
            reference.qualifier,
            reference.alias,
            reference.line,
        )
        for item in placed
        for ordinal, reference in enumerate(item.file.references)
    ]
    if records:
        await connection.copy_records_to_table("node_references", records=records, columns=_COLUMNS)
