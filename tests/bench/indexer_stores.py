"""A PostgreSQL of its own with the indexer's tables, for what is measured without services."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from services.indexer.storage.database import Database
from services.indexer.storage.migrate import migrate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_CONNECTIONS = 4


@asynccontextmanager
async def opened_database(url: str, timeout_seconds: float) -> AsyncIterator[Database]:
    """Yields a database with all tables."""
    database = Database(url, connections=_CONNECTIONS, timeout_seconds=timeout_seconds)
    await database.open()
    try:
        await migrate(database, url)
        yield database
    finally:
        await database.close()
