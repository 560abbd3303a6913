"""The statements for Citus in docs/operations.md fit the schema."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from tests.integration.replicas import replica, workspace_with_model

if TYPE_CHECKING:
    from services.indexer.storage.database import Database

_PAGE = Path(__file__).parent.parent.parent / "docs" / "operations.md"
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


async def test_every_table_is_placed_and_its_keys_hold_the_column_it_goes_by(
    database: Database,
) -> None:
    """Planted once: a table left out, and nodes that go by their id."""
    await workspace_with_model(replica(database))
    text = _PAGE.read_text("utf-8")
    distributed = dict(re.findall(r"create_distributed_table\('(\w+)', '(\w+)'", text))
    reference = re.findall(r"create_reference_table\('(\w+)'\)", text)

    async with database.connection() as connection:
        tables = {row["relname"] for row in await connection.fetch(_TABLES)}
        keys = {
            table: await connection.fetch(_KEYS_WITHOUT, table, column)
            for table, column in distributed.items()
        }
        foreign = {
            table: await connection.fetch(_FOREIGN_WITHOUT, table, column, reference)
            for table, column in distributed.items()
        }

    assert {*distributed, *reference} == tables
    assert {table for table, found in keys.items() if found} == set()
    assert {table for table, found in foreign.items() if found} == set()
