"""What doctor says of indexes while one is being built."""

from __future__ import annotations

import asyncio
import time

import asyncpg

from services.cli.doctor_database import database_checks

_BUILD = "CREATE INDEX CONCURRENTLY slowly_built ON files (digest)"
_SHOWN = """
SELECT EXISTS (SELECT FROM pg_index WHERE NOT indisvalid
  AND indexrelid = to_regclass('slowly_built'))
"""
_SECONDS = 10


async def test_an_index_that_is_being_built_is_not_told_as_broken(migrated_url: str) -> None:
    """Red when every index that is not valid counts; one that a build left behind still does."""
    holder, builder, looker = [await asyncpg.connect(migrated_url) for _ in range(3)]
    try:
        transaction = holder.transaction()
        await transaction.start()
        await holder.execute("LOCK TABLE files IN ROW EXCLUSIVE MODE")  # the build waits for it
        building = asyncio.create_task(builder.execute(_BUILD))
        deadline = time.monotonic() + _SECONDS
        while not await looker.fetchval(_SHOWN):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        while_built = await asyncio.to_thread(_told, migrated_url)
        await looker.execute("SELECT pg_cancel_backend($1)", builder.get_server_pid())
        await asyncio.wait((building,), timeout=_SECONDS)
        await transaction.rollback()
        left_behind = await asyncio.to_thread(_told, migrated_url)
    finally:
        for connection in (holder, builder, looker):
            await connection.close()

    assert isinstance(building.exception(), asyncpg.QueryCanceledError)
    assert "all valid" in while_built
    assert "slowly_built" in left_behind
    assert "DROP INDEX" in left_behind


def _told(url: str) -> str:
    try:
        return database_checks(url)["indexes"]()
    except Exception as error:  # noqa: BLE001 - what it says is looked at
        return str(error)
