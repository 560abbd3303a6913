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
    from services.runtime import log  # noqa: PLC0415
    from services.runtime.settings import load_settings  # noqa: PLC0415

    settings = load_settings(IndexerSettings)
    log.configure("indexer", settings.log_level, settings.log_format)
    asyncio.run(_migrate(settings))
    return 0


async def _migrate(settings: IndexerSettings) -> None:
    from services.indexer.storage.database import Database  # noqa: PLC0415
    from services.indexer.storage.migrate import HEAD, migrate  # noqa: PLC0415
    from services.runtime.log import get_logger  # noqa: PLC0415

    url = settings.database_url.get_secret_value()
    database = Database(url, connections=2, timeout_seconds=settings.database_timeout_seconds)
    await database.open()
    try:
        await migrate(database, url)
        get_logger().info("schema_ready", revision=HEAD)
    finally:
        await database.close()


if __name__ == "__main__":
    sys.exit(main_guard(main, "migrate"))
