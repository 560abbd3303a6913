"""Migrates the database and ends, before new replicas: `python -m services.indexer.migrate`."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from services.runtime.server import main_guard

if TYPE_CHECKING:
    from services.indexer.settings import IndexerSettings


def main() -> int:
    """Returns once the database has this version's schema; costs one query when it has it."""
    from services.indexer.settings import IndexerSettings  # noqa: PLC0415 - settings first
    from services.runtime.settings import load_settings  # noqa: PLC0415

    asyncio.run(_migrate(load_settings(IndexerSettings)))
    return 0


async def _migrate(settings: IndexerSettings) -> None:
    from services.indexer.storage.database import Database  # noqa: PLC0415
    from services.indexer.storage.migrate import migrate  # noqa: PLC0415

    url = settings.database_url.get_secret_value()
    database = Database(url, connections=2, timeout_seconds=settings.database_timeout_seconds)
    await database.open()
    try:
        await migrate(database, url)
    finally:
        await database.close()


if __name__ == "__main__":
    sys.exit(main_guard(main, "migrate"))
