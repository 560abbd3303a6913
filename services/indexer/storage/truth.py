"""What is needed of nodes to find them again, and to tell where they come from."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.indexer.model import NodeId, NodeKind, StoredNode

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from services.indexer.model import WorkspaceId
    from services.indexer.storage.database import Database

TWINS = """
WITH asked AS MATERIALIZED (
    SELECT file_id, content_hash, qualified_name FROM nodes
    WHERE workspace_id = $1 AND id = ANY ($2))
SELECT n.file_id, n.id, n.kind, n.qualified_name, n.part, n.content_hash
FROM (SELECT DISTINCT file_id FROM asked) a
JOIN nodes n ON n.workspace_id = $1 AND n.file_id = a.file_id
WHERE n.content_hash IN (SELECT content_hash FROM asked)
  OR n.qualified_name IN (SELECT qualified_name FROM asked)
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

    async def twins(
        self, workspace_id: WorkspaceId, nodes: Sequence[NodeId]
    ) -> dict[NodeId, list[StoredNode]]:
        """Returns what matching needs of nodes: of each, all in its file of an asked text or name.

        Those that are gone are left out. Other texts of a file take no part in matching these.
        """
        async with self._database.connection() as connection:
            rows = await connection.fetch(TWINS, workspace_id, nodes)
        by_file: dict[int, list[StoredNode]] = defaultdict(list)
        for row in rows:
            node = StoredNode(
                NodeId(row["id"]),
                NodeKind(row["kind"]),
                row["qualified_name"],
                row["part"],
                row["content_hash"],
            )
            by_file[row["file_id"]].append(node)
        return {node.id: found for found in by_file.values() for node in found}

    async def origins(
        self, workspace_id: WorkspaceId, nodes: Sequence[NodeId]
    ) -> dict[NodeId, Origin]:
        """Returns where nodes come from, those that are gone left out."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(ORIGIN, workspace_id, nodes)
        return {NodeId(row["id"]): Origin(row["embedded_run"], row["age"]) for row in rows}
