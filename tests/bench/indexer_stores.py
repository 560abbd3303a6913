"""A PostgreSQL of its own with the indexer's tables, for what is measured without services."""

from __future__ import annotations

import shutil
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from services.indexer.storage.database import Database
from services.indexer.storage.migrate import migrate
from tests.support.postgres import make_reachable_folder
from tests.support.postgres_server import Server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

_CONNECTIONS = 4


@contextmanager
def running_server() -> Iterator[str]:
    """Yields the DSN of a new server, which has a folder that its account can enter."""
    folder = make_reachable_folder()
    try:
        server = Server(folder)
        try:
            yield server.url
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


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
