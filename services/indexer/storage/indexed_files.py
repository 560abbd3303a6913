"""What the index knows of single files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.indexer.model import WorkspaceId
    from services.indexer.storage.database import Database

ONE_FILE = """
SELECT digest, size, language FROM files
WHERE workspace_id = $1 AND path = $2 AND state = 'indexed'
"""

_KNOWN = "SELECT path FROM files WHERE workspace_id = $1 AND path = ANY ($2)"

_LAST_EXCLUDE = """
SELECT exclude FROM runs WHERE workspace_id = $1 AND mode IN ('full', 'incremental')
  AND paths = '{}' AND model_id IS NULL
  AND state IN ('succeeded', 'succeeded_with_warnings')
ORDER BY seq DESC LIMIT 1
"""


@dataclass(frozen=True, slots=True)
class IndexedFile:
    """A file as it was indexed."""

    digest: bytes
    size: int
    language: str


class IndexedFiles:
    """Looks files up by their paths."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, workspace_id: WorkspaceId, path: str) -> IndexedFile | None:
        """Returns a file of the index; None when it holds none of this path."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(ONE_FILE, workspace_id, path)
        return None if row is None else IndexedFile(row["digest"], row["size"], row["language"])

    async def unknown(self, workspace_id: WorkspaceId, paths: Sequence[str]) -> list[str]:
        """Returns those of some paths that have no row at all, in the order given."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(_KNOWN, workspace_id, list(paths))
        known = {row["path"] for row in rows}
        return [path for path in paths if path not in known]

    async def last_exclude(self, workspace_id: WorkspaceId) -> tuple[str, ...] | None:
        """Returns what the last run over the whole tree left out; None when none succeeded."""
        async with self._database.connection() as connection:
            found = await connection.fetchval(_LAST_EXCLUDE, workspace_id)
        return None if found is None else tuple(found)
