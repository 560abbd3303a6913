"""Whatever grows belongs to a workspace or to a content, by every key that it has.

So one workspace's rows are found, moved and removed without a look at another's, and partitions can
be by workspace.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.integration.replicas import replica, workspace_with_model

if TYPE_CHECKING:
    from services.indexer.storage.database import Database

_SMALL = {"workspaces", "models", "upkeep_times"}
"""A row for each workspace, model or task: they are what others refer to, or stay a few."""
_BY_CONTENT = {"embedding_cache", "content_terms", "unused_texts"}
"""Shared by all workspaces that hold the content."""
_TABLES = """
SELECT c.relname FROM pg_class c WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition
  AND c.relnamespace = 'public'::regnamespace AND c.relname <> 'alembic_version'
"""
_KEYS_WITHOUT = """
SELECT i.indexrelid::regclass::text FROM pg_index i
WHERE i.indrelid = $1::text::regclass AND (i.indisunique OR i.indisexclusion)
  AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = i.indrelid
    AND a.attnum = ANY (i.indkey) AND a.attname = $2)
"""
_FOREIGN_WITHOUT = """
SELECT conname FROM pg_constraint f
WHERE f.contype = 'f' AND f.conrelid = $1::text::regclass AND f.conparentid = 0
  AND f.confrelid::regclass::text <> ALL ($3::text[])
  AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = f.conrelid
    AND a.attnum = ANY (f.conkey) AND a.attname = $2)
"""


async def test_every_key_of_what_grows_holds_the_column_it_goes_by(database: Database) -> None:
    """Planted once: a new table whose key is its id, and nodes that go by theirs."""
    await workspace_with_model(replica(database))
    without: dict[str, list[str]] = {}
    async with database.connection() as connection:
        tables = {row["relname"] for row in await connection.fetch(_TABLES)}
        for table in tables - _SMALL:
            column = "content_hash" if table in _BY_CONTENT else "workspace_id"
            found = await connection.fetch(_KEYS_WITHOUT, table, column)
            found += await connection.fetch(_FOREIGN_WITHOUT, table, column, list(_SMALL))
            if found:
                without[table] = [row[0] for row in found]

    assert tables > _SMALL | _BY_CONTENT
    assert without == {}
