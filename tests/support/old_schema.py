"""Databases as older versions left them."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy.ext.asyncio import create_async_engine

from services.indexer.storage import migrate
from services.indexer.storage.partitions import (
    PARTITIONED,
    add_partition,
    vectors_ddl,
    vectors_table,
)

_TABLES = """
SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND NOT relispartition
  AND relnamespace = 'public'::regnamespace AND relname <> 'alembic_version' ORDER BY relname
"""
_COLUMNS = """
SELECT attname FROM pg_attribute WHERE attrelid = $1::regclass AND attnum > 0
  AND NOT attisdropped AND attgenerated = '' ORDER BY attnum
"""
_SEQUENCES = "SELECT relname FROM pg_class WHERE relkind = 'S'"


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(migrate.__file__).parent / "migrations"))
    return config


def revisions_after(revision: str) -> list[str]:
    """Returns the revisions that a database of an older one lacks, in their order."""
    scripts = ScriptDirectory.from_config(_config())
    newer = [script.revision for script in scripts.iterate_revisions("head", revision)]
    return newer[::-1]


def upgrade_to(url: str, revision: str) -> None:
    """Migrates to an older revision, as a version of that time did."""
    config = _config()

    async def upgrade() -> None:
        engine = create_async_engine(
            "postgresql+asyncpg://", async_creator=lambda: asyncpg.connect(url)
        )
        async with engine.begin() as connection:
            await connection.run_sync(run)
        await engine.dispose()

    def run(connection: Any) -> None:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)

    asyncio.run(upgrade())


async def copy_index(url: str, old_url: str) -> None:
    """Copies all rows into a database of an older schema, less what that one has no place for."""
    new, old = await asyncpg.connect(url), await asyncpg.connect(old_url)
    try:
        await _make_partitions(new, old)
        await old.execute("SET session_replication_role = replica")  # rows come in any order
        for row in await old.fetch(_TABLES):
            await _copy_table(new, old, row["relname"])
        for row in await old.fetch(_SEQUENCES):
            last = await new.fetchval(f"SELECT last_value FROM {row['relname']}")
            await old.execute("SELECT setval($1, $2)", row["relname"], last)
        await old.execute("ANALYZE")
    finally:
        await new.close()
        await old.close()


async def _make_partitions(new: asyncpg.Connection, old: asyncpg.Connection) -> None:
    models = await new.fetch("SELECT id, dimensions FROM models")
    for model in models:
        await old.execute(vectors_ddl(model["id"], model["dimensions"]))
    tables = [*PARTITIONED, *(vectors_table(model["id"]) for model in models)]
    for workspace in await new.fetch("SELECT id FROM workspaces"):
        for table in tables:
            await add_partition(old, table, workspace["id"])


async def _copy_table(new: asyncpg.Connection, old: asyncpg.Connection, table: str) -> None:
    known = {row["attname"] for row in await new.fetch(_COLUMNS, table)}
    columns = [row["attname"] for row in await old.fetch(_COLUMNS, table)]
    assert known.issuperset(columns), f"{table} has lost a column since"
    rows = io.BytesIO()
    await new.copy_from_query(
        f"SELECT {', '.join(columns)} FROM {table}", output=rows, format="binary"
    )
    rows.seek(0)
    await old.copy_to_table(table, source=rows, columns=columns, format="binary")
