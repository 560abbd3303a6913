"""Notes whose terms changed, so that blocks of postings are read with what is not in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.indexer.model import NodeId, WorkspaceId
    from services.indexer.storage.database import Connection


def noted(ended: str) -> str:
    """Returns a part of a WITH that notes the nodes, column `id`, of another part of it.

    Whoever writes terms notes it in the same transaction: the blocks of an index are right but for
    the nodes that are noted since they were made.
    """
    return f"""
    noted AS (
      INSERT INTO term_changes (workspace_id, nodes)
      SELECT $1, array_agg(id) FROM {ended} HAVING count(*) > 0)"""


async def note_changed(
    connection: Connection, workspace_id: WorkspaceId, nodes: Sequence[NodeId]
) -> None:
    """Notes that terms of nodes came, went or changed, in the transaction that does it."""
    if nodes:
        await connection.execute(
            "INSERT INTO term_changes (workspace_id, nodes) VALUES ($1, $2)", workspace_id, nodes
        )
