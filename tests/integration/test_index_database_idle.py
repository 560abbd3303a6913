"""A transaction whose owner sleeps, or is cut off, holds nobody up for longer than its lease."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from services.indexer.storage.database import Database
from services.runtime.errors import DependencyUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_IDLE_SECONDS = 0.5
_WRITE = "UPDATE workspaces SET display_name = $1"


@pytest.fixture
async def sleeper(migrated_url: str) -> AsyncIterator[Database]:
    """The database as a process has it that will sleep in the middle of a transaction."""
    database = Database(migrated_url, connections=2, timeout_seconds=30, idle_seconds=_IDLE_SECONDS)
    await database.open()
    yield database
    await database.close()


async def test_rows_that_a_sleeper_has_locked_are_free_when_its_lease_is_over(
    sleeper: Database, database: Database
) -> None:
    """Red without the limit: whoever takes the run over waits for the sleeper to wake."""
    insert = "INSERT INTO workspaces (name, root, directory) VALUES ('tree', 'r', 'd')"
    async with database.connection() as connection:
        await connection.execute(insert)

    started_at = time.monotonic()
    with pytest.raises(DependencyUnavailableError):  # noqa: PT012 - the body is the transaction
        async with sleeper.transaction() as asleep:
            await asleep.execute(_WRITE, "asleep")
            async with database.connection() as connection:
                await connection.execute(_WRITE, "awake")
            waited_seconds = time.monotonic() - started_at
            await asleep.execute(_WRITE, "asleep again")

    async with database.connection() as connection:
        name = await connection.fetchval("SELECT display_name FROM workspaces")
    assert waited_seconds < _IDLE_SECONDS + 5
    assert name == "awake"


async def test_the_pool_serves_on_after_a_sleep(sleeper: Database) -> None:
    for _ in range(3):
        with pytest.raises(DependencyUnavailableError):  # noqa: PT012 - as above
            async with sleeper.transaction() as asleep:
                await asleep.fetchval("SELECT pg_terminate_backend(pg_backend_pid())")
                await asleep.fetchval("SELECT 1")

    async with sleeper.connection() as connection:
        assert await connection.fetchval("SELECT 1") == 1
