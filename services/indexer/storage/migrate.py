"""Brings the database's schema to this version, once, whoever starts first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg

from services.runtime.exits import ExitCode, StartError
from services.runtime.failpoints import failpoint
from services.runtime.log import get_logger

if TYPE_CHECKING:
    from services.indexer.storage.database import Database

HEAD = "0015"
"""Newest revision; a test holds it to the migrations folder."""

_LOCK_KEY = 0x10DE_570E
_FOLDER = Path(__file__).parent / "migrations"


async def migrate(database: Database, url: str) -> None:
    """Migrates to the newest revision; costs one query when it is there.

    Raises:
        StartError: the database was made by a newer version, or a migration failed.
    """
    current = await _current(database)
    if current == HEAD:
        return
    if current is not None and current > HEAD:
        raise StartError(
            ExitCode.DATA_FOLDER,
            f"The database has schema {current}; this version knows {HEAD}. Use the newer version.",
        )
    await _upgrade(url)
    get_logger().info("schema_migrated", before=current or "none", revision=HEAD)


async def _current(database: Database) -> str | None:
    async with database.connection() as connection:
        try:
            return str(await connection.fetchval("SELECT version_num FROM alembic_version"))
        except asyncpg.UndefinedTableError:
            return None


async def _upgrade(url: str) -> None:
    # Slow to import, and needed only when there is something to do.
    from sqlalchemy import text  # noqa: PLC0415
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415
    from sqlalchemy.ext.asyncio import create_async_engine  # noqa: PLC0415

    engine = create_async_engine(
        "postgresql+asyncpg://", async_creator=lambda: asyncpg.connect(url, timeout=10)
    )
    try:
        async with engine.begin() as connection:
            await connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK_KEY})"))
            await failpoint("indexer.migrate.before")
            await connection.run_sync(_run_alembic)
            await failpoint("indexer.migrate.after")
    except SQLAlchemyError as error:
        raise StartError(
            ExitCode.DATA_FOLDER, f"The database could not be migrated: {error}"
        ) from error
    finally:
        await engine.dispose()


def _run_alembic(connection: Any) -> None:
    from alembic import command  # noqa: PLC0415 - as above
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(_FOLDER))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
