"""A transaction whose owner sleeps, or is cut off, holds nobody up for longer than its lease."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

import asyncpg
import pytest
from prometheus_client import REGISTRY

from services.indexer.storage.database import Database
from services.indexer.storage.frozen_sessions import FrozenSessions
from services.runtime.errors import DependencyUnavailableError
from tests.integration.indexing import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

_ENDED = "lodestone_indexer_frozen_sessions_ended_total"
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


@pytest.fixture
async def asleep(migrated_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A session of the service in a transaction, with the limits that PostgreSQL has for it."""
    connection = await asyncpg.connect(
        migrated_url,
        server_settings={
            "application_name": "lodestone-indexer",
            "idle_in_transaction_session_timeout": "500ms",
            "statement_timeout": "500ms",
        },
    )
    await connection.execute("CREATE TEMP TABLE numbers (number int)")
    await connection.execute("BEGIN")
    yield connection
    connection.terminate()


async def _parses(connection: asyncpg.Connection) -> None:
    await connection.prepare("SELECT 12345")  # is not yet told to run


async def _copies(connection: asyncpg.Connection) -> None:
    async def rows() -> AsyncIterator[bytes]:
        yield b"1\n"
        await asyncio.sleep(3600)

    with contextlib.suppress(asyncpg.PostgresError, ConnectionError):
        await connection.copy_to_table("numbers", source=rows())


@pytest.mark.parametrize("falls_asleep", [_parses, _copies])
async def test_a_session_frozen_in_the_middle_of_a_statement_is_ended(
    falls_asleep: Callable[[asyncpg.Connection], Awaitable[None]],
    asleep: asyncpg.Connection,
    database: Database,
) -> None:
    """PostgreSQL has no limit on that, and whoever wants what the session has locked would wait.

    Happened: an owner was frozen between a statement's parsing and its run.
    """
    process = asleep.get_server_pid()
    frozen = asyncio.ensure_future(falls_asleep(asleep))
    await asyncio.sleep(1.5)

    async def states() -> list[str]:
        async with database.connection() as connection:
            rows = await connection.fetch(
                "SELECT state FROM pg_stat_activity WHERE pid = $1", process
            )
        return [row["state"] for row in rows]

    before = await states()
    await FrozenSessions(database, idle_seconds=30.0, copy_seconds=30.0).end()
    kept = await states()
    ended = REGISTRY.get_sample_value(_ENDED) or 0.0
    await FrozenSessions(database, idle_seconds=0.5, copy_seconds=1.0).end()
    await until(asleep.is_closed)
    frozen.cancel()

    assert REGISTRY.get_sample_value(_ENDED) == ended + 1
    assert before == kept == ["active"], "PostgreSQL ends it by none of its limits"


async def test_sessions_at_work_are_left_alone(database: Database) -> None:
    async with database.connection() as connection:
        working = asyncio.ensure_future(connection.fetchval("SELECT 7 FROM pg_sleep(1)"))
        await asyncio.sleep(0.3)
        await FrozenSessions(database, idle_seconds=0.0, copy_seconds=0.0).end()
        assert await working == 7


async def test_the_pool_serves_on_after_a_sleep(sleeper: Database) -> None:
    for _ in range(3):
        with pytest.raises(DependencyUnavailableError):  # noqa: PT012 - as above
            async with sleeper.transaction() as asleep:
                await asleep.fetchval("SELECT pg_terminate_backend(pg_backend_pid())")
                await asleep.fetchval("SELECT 1")

    async with sleeper.connection() as connection:
        assert await connection.fetchval("SELECT 1") == 1
