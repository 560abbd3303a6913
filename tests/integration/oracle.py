"""What an index holds, ids aside, and whether that is what one built from scratch holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import asyncpg

from tests.support.invariants import broken_rules

if TYPE_CHECKING:
    from tests.integration.indexing import Indexing

_FILES = """
SELECT path, state, skip_reason, digest, recipe, language, line_count, size
FROM files WHERE workspace_id = $1 ORDER BY path
"""
_NODES = """
SELECT f.path, n.ordinal, n.kind, n.qualified_name, n.start_byte, n.end_byte, n.start_line,
  n.end_line, n.segments, n.part, n.part_count, n.content_hash, n.status, p.ordinal AS parent
FROM nodes n
JOIN files f ON f.workspace_id = n.workspace_id AND f.id = n.file_id
LEFT JOIN nodes p ON p.workspace_id = n.workspace_id AND p.id = n.parent_id
WHERE n.workspace_id = $1 ORDER BY f.path, n.ordinal
"""
_TERMS = """
SELECT f.path, n.ordinal, t.terms, t.counts, t.length, t.name_terms
FROM node_terms t
JOIN nodes n ON n.workspace_id = t.workspace_id AND n.id = t.node_id
JOIN files f ON f.workspace_id = n.workspace_id AND f.id = n.file_id
WHERE t.workspace_id = $1 ORDER BY f.path, n.ordinal
"""
_REFERENCES = """
SELECT f.path, n.ordinal, r.ordinal AS place, r.kind, r.name, r.qualifier, r.alias, r.line
FROM node_references r
JOIN nodes n ON n.workspace_id = r.workspace_id AND n.id = r.node_id
JOIN files f ON f.workspace_id = r.workspace_id AND f.id = r.file_id
WHERE r.workspace_id = $1 ORDER BY f.path, n.ordinal, r.ordinal
"""
_ROWS = (
    ("files", _FILES),
    ("nodes", _NODES),
    ("terms", _TERMS),
    ("references", _REFERENCES),
)

__all__ = ["broken_rules", "check", "rows_of"]


async def rows_of(url: str, workspace: str) -> dict[str, list[tuple[Any, ...]]]:
    """Returns all that an index holds, ids and times aside."""
    connection = await asyncpg.connect(url)
    try:
        number = await connection.fetchval("SELECT id FROM workspaces WHERE name = $1", workspace)
        return {
            name: [tuple(row) for row in await connection.fetch(sql, number)] for name, sql in _ROWS
        }
    finally:
        await connection.close()


async def check(services: Indexing, workspace: str, directory: str) -> None:
    """Holds an index to the rules, and to one that is built from scratch in another workspace."""
    assert await broken_rules(services.url) == []
    scratch = f"{workspace}-scratch"
    await services.create(scratch, directory)
    await services.run(scratch)
    expected = await rows_of(services.url, scratch)
    found = await rows_of(services.url, workspace)
    await services.delete(scratch)
    for name, rows in expected.items():
        assert found[name] == rows, name
    assert await broken_rules(services.url) == []
