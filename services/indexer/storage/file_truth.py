"""What the tables hold of files, as a parse of them would have left it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.indexer.model import ParsedFile, WorkspaceId
    from services.indexer.storage.database import Database

_FILES = """
SELECT path, skip_reason, language, line_count, has_syntax_errors FROM files
WHERE workspace_id = $1 AND path = ANY ($2)
"""
_NODES = """
SELECT f.path, coalesce(p.ordinal, CASE WHEN n.parent_id IS NOT NULL THEN -1 END) AS parent,
  n.ordinal, n.kind, n.qualified_name, n.start_byte, n.end_byte, n.start_line, n.end_line,
  n.segments, n.part, n.part_count, n.content_hash, n.generation = f.generation AS new
FROM files f JOIN nodes n ON n.workspace_id = f.workspace_id AND n.file_id = f.id
LEFT JOIN nodes p
  ON p.workspace_id = n.workspace_id AND p.id = n.parent_id AND p.file_id = n.file_id
WHERE f.workspace_id = $1 AND f.path = ANY ($2) ORDER BY f.path, n.ordinal
"""
"""A parent that is not in the file counts as -1."""

_REFERENCES = """
SELECT f.path, n.ordinal AS node, r.ordinal, r.kind, r.name, r.qualifier, r.alias, r.line,
  r.file_id = f.id AS here
FROM files f JOIN nodes n ON n.workspace_id = f.workspace_id AND n.file_id = f.id
JOIN node_references r ON r.workspace_id = n.workspace_id AND r.node_id = n.id
WHERE f.workspace_id = $1 AND f.path = ANY ($2) ORDER BY f.path, r.ordinal, n.ordinal
"""

Row = tuple[object, ...]


@dataclass(slots=True)
class FileRows:
    """The rows of one file, ids aside: nodes are told by their places in it."""

    file: Row = ()
    nodes: list[Row] = field(default_factory=list)
    parents: list[int | None] = field(default_factory=list)
    """Of each node the place of its parent, None for none, -1 for one that is not there."""

    references: list[Row] = field(default_factory=list)


class FileTruth:
    """Reads rows of files, for who compares them with what is parsed."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def rows(self, workspace_id: WorkspaceId, paths: Sequence[str]) -> dict[str, FileRows]:
        """Returns what the tables hold of each of some files, as one moment saw it."""
        found = {path: FileRows() for path in paths}
        async with self._database.snapshot() as connection:
            for row in await connection.fetch(_FILES, workspace_id, list(paths)):
                found[row["path"]].file = tuple(row)[1:]
            for row in await connection.fetch(_NODES, workspace_id, list(paths)):
                item = found[row["path"]]
                segments = None if row["segments"] is None else tuple(row["segments"])
                values = tuple(row)
                item.parents.append(row["parent"])
                item.nodes.append((*values[2:9], segments, *values[10:]))
            for row in await connection.fetch(_REFERENCES, workspace_id, list(paths)):
                found[row["path"]].references.append(tuple(row)[1:])
        return found


def rows_of(file: ParsedFile) -> FileRows:
    """Returns the rows that a parsed file should have."""
    return FileRows(
        (file.skip_reason, file.language, file.line_count, file.has_syntax_errors),
        [
            (
                place,
                node.kind.value,
                node.qualified_name,
                node.start_byte,
                node.end_byte,
                node.start_line,
                node.end_line,
                node.segments,
                node.part,
                node.part_count,
                node.content_hash,
                True,
            )
            for place, node in enumerate(file.nodes)
        ],
        [node.parent for node in file.nodes],
        [
            (
                item.node,
                place,
                item.kind.value,
                item.name,
                item.qualifier,
                item.alias,
                item.line,
                True,
            )
            for place, item in enumerate(file.references)
        ],
    )
