"""What an index holds, ids aside, so that two indexes can be compared row for row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.support.postgres import Database

if TYPE_CHECKING:
    from tests.support.stack import Lodestone

_FILES = """
SELECT path, state, skip_reason, encode(digest, 'hex'), recipe, language, line_count, size
FROM files WHERE workspace_id = {workspace} ORDER BY path
"""
_NODES = """
SELECT f.path, n.ordinal, n.kind, n.qualified_name, n.start_byte, n.end_byte, n.start_line,
  n.end_line, n.segments, n.part, n.part_count, encode(n.content_hash, 'hex'), n.status,
  p.ordinal AS parent, n.generation = f.generation AS newest
FROM nodes n
JOIN files f ON f.workspace_id = n.workspace_id AND f.id = n.file_id
LEFT JOIN nodes p ON p.workspace_id = n.workspace_id AND p.id = n.parent_id
WHERE n.workspace_id = {workspace} ORDER BY f.path, n.ordinal
"""
_VECTORS = """
SELECT f.path, n.ordinal, encode(v.content_hash, 'hex'), md5(v.embedding::text)
FROM node_vectors_m{model} v
JOIN nodes n ON n.workspace_id = v.workspace_id AND n.id = v.node_id
JOIN files f ON f.workspace_id = n.workspace_id AND f.id = n.file_id
WHERE v.workspace_id = {workspace} ORDER BY f.path, n.ordinal
"""
_TERMS = """
SELECT f.path, n.ordinal, t.terms, t.counts, t.length, t.name_terms
FROM node_terms t
JOIN nodes n ON n.workspace_id = t.workspace_id AND n.id = t.node_id
JOIN files f ON f.workspace_id = n.workspace_id AND f.id = n.file_id
WHERE t.workspace_id = {workspace} ORDER BY f.path, n.ordinal
"""


@dataclass(frozen=True, slots=True)
class IndexRows:
    """All rows of one workspace."""

    files: list[str]
    nodes: list[str]
    vectors: list[str]
    terms: list[str]


def index_rows(product: Lodestone, workspace: str) -> IndexRows:
    """Returns the rows of a workspace, read from the tables themselves."""
    return rows_in(product.database_url(), workspace)


def rows_in(url: str, workspace: str) -> IndexRows:
    """Returns the rows of a workspace of a database."""
    database = Database(url)
    ids = database.execute(f"SELECT id, active_model_id FROM workspaces WHERE name = '{workspace}'")
    number, _, model = ids.partition("|")
    parts = (
        database.execute(query.format(workspace=int(number), model=int(model))).splitlines()
        for query in (_FILES, _NODES, _VECTORS, _TERMS)
    )
    return IndexRows(*parts)
