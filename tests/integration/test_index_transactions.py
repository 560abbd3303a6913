"""No transaction is open while another service is called, in any stage of a run (S4).

And what ends one through no fault of its own may be sent again.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import asyncpg
import pytest

from services.indexer.storage.database import Database
from services.runtime.errors import DependencyUnavailableError
from tests.integration.hooks import Hook
from tests.integration.indexing import State, indexing
from tests.integration.io_hooks import IoHook
from tests.integration.samples import write_many

if TYPE_CHECKING:
    from pathlib import Path

_OLDER = """
SELECT query FROM pg_stat_activity WHERE datname = current_database()
  AND backend_type = 'client backend' AND pid <> pg_backend_pid() AND xact_start < $1
"""


@pytest.mark.parametrize("method", ["ScanTree", "ParseFiles", "ReadContents", "Embed"])
async def test_no_transaction_is_open_while_a_service_is_called(
    roots: Path, sockets: Path, migrated_url: str, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Red with a transaction around what calls the service, at each of the four places."""
    io_hook, hook = IoHook(), Hook()
    io_hook.install(monkeypatch)
    write_many(roots / "tree", 40, per_file=5)
    async with indexing(
        roots,
        sockets,
        migrated_url,
        embed=hook.app,
        embed_batch_nodes=8,
        embed_batches_in_flight=1,
        lease_seconds=60.0,  # a transaction that sleeps for as long is ended by PostgreSQL
    ) as services:
        await services.create("tree", "tree")
        held = hook if method == "Embed" else io_hook
        if method == "Embed":
            hook.hold()
        else:
            io_hook.hold(method)
        run = await services.begin("tree")
        await held.reached.wait()
        connection = await asyncpg.connect(services.url)
        reached_at = await connection.fetchval("SELECT clock_timestamp()")
        # Statements of beats and of other stages may have begun before, and come to their end.
        async with asyncio.timeout(10):
            while await connection.fetch(_OLDER, reached_at):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        await connection.close()
        held.go_on.set()
        assert (await services.wait(run)).state == State.STATE_SUCCEEDED


async def test_a_transaction_that_meets_columns_of_a_newer_version_may_be_sent_again(
    database: Database,
) -> None:
    """A rolling upgrade: a statement that reads whole rows has a plan of the old ones."""

    async def read() -> None:
        async with database.transaction() as connection:
            await connection.fetch("SELECT * FROM models")

    await read()
    async with database.connection() as connection:
        await connection.execute("ALTER TABLE models ADD COLUMN added int")

    with pytest.raises(DependencyUnavailableError):
        await read()
    await read()


async def test_a_login_that_is_refused_for_a_while_is_one_of_a_database_that_is_away(
    migrated_url: str,
) -> None:
    """As while passwords are changed, or a backup is restored."""
    parts = urlsplit(migrated_url)
    role = parts.path[1:] + "_role"
    admin = await asyncpg.connect(migrated_url)
    await admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
    own = parts.netloc.replace(parts.netloc.rpartition("@")[0], f"{role}:secret")
    database = Database(parts._replace(netloc=own).geturl(), connections=2, timeout_seconds=30)
    try:
        await database.open()
        await admin.execute(f"ALTER ROLE {role} NOLOGIN")
        await admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", role
        )
        # Those that are in the pool were ended, and no new one is let in.
        for _ in range(3):
            with pytest.raises(DependencyUnavailableError):
                async with database.connection() as connection:
                    await connection.fetchval("SELECT 1")
        await admin.execute(f"ALTER ROLE {role} LOGIN")
        async with database.connection() as connection:
            assert await connection.fetchval("SELECT 1") == 1
    finally:
        await database.close()
        await admin.execute(f"DROP ROLE {role}")
        await admin.close()
