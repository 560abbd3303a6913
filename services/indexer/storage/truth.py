"""What is needed of nodes to find them again, and to tell where they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.indexer.model import NodeId, NodeKind, StoredNode

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from services.indexer.model import WorkspaceId
    from services.indexer.storage.database import Database

STORED = """
SELECT id, kind, qualified_name, part, content_hash FROM nodes
WHERE workspace_id = $1 AND id = ANY ($2)
"""
ORIGIN = """
SELECT id, embedded_run, extract(epoch FROM clock_timestamp() - updated_at)::float8 AS age
FROM nodes WHERE workspace_id = $1 AND id = ANY ($2)
"""


@dataclass(frozen=True, slots=True)
class Origin:
    """The run that embedded a node, if one did, and the seconds since it was last indexed."""

    run: UUID | None
    age_seconds: float


class TruthStore:
    """Reads single nodes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def stored(
        self, workspace_id: WorkspaceId, nodes: Sequence[NodeId]
    ) -> dict[NodeId, StoredNode]:
        """Returns what matching needs of nodes, those that are gone left out."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(STORED, workspace_id, nodes)
        return {
            NodeId(row["id"]): StoredNode(
                NodeId(row["id"]),
                NodeKind(row["kind"]),
                row["qualified_name"],
                row["part"],
                row["content_hash"],
            )
            for row in rows
        }

    async def origins(
        self, workspace_id: WorkspaceId, nodes: Sequence[NodeId]
    ) -> dict[NodeId, Origin]:
        """Returns where nodes come from, those that are gone left out."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(ORIGIN, workspace_id, nodes)
        return {NodeId(row["id"]): Origin(row["embedded_run"], row["age"]) for row in rows}
