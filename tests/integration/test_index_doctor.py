"""What doctor says of indexes: while one is being built, and of those of models."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import asyncpg

from services.cli.doctor_database import database_checks
from tests.integration.replicas import replica, workspace_with_model

if TYPE_CHECKING:
    from services.indexer.storage.database import Database

_BUILD = "CREATE INDEX CONCURRENTLY slowly_built ON files (digest)"
_SHOWN = """
SELECT EXISTS (SELECT FROM pg_index WHERE NOT indisvalid
  AND indexrelid = to_regclass('slowly_built'))
"""
_SECONDS = 10
_KEY = "node_vectors_m1_pkey"


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


async def test_indexes_of_registered_models_are_looked_for(
    migrated_url: str, database: Database
) -> None:
    """Red when the key of a model's table is not, or the lists that searches of it read."""
    stores = replica(database)
    before = await asyncio.to_thread(_told, migrated_url)
    workspace, model = await workspace_with_model(stores)
    partition = f"node_vectors_m{model.id}_w{workspace.id}"

    with_model = await asyncio.to_thread(_told, migrated_url)
    await stores.value(
        "INSERT INTO vector_indexes (workspace_id, model_id, probes, recall, nodes) "
        f"VALUES ({workspace.id}, {model.id}, 10, 1, 5000)"
    )
    without_lists = await asyncio.to_thread(_told, migrated_url)
    await stores.value(
        f"CREATE INDEX {partition}_lists ON {partition} USING ivfflat (embedding halfvec_ip_ops)"
    )
    with_lists = await asyncio.to_thread(_told, migrated_url)
    await stores.value(f"ALTER TABLE node_vectors_m{model.id} DROP CONSTRAINT {_KEY}")
    without_key = await asyncio.to_thread(_told, migrated_url)
    await stores.value(f"DROP TABLE node_vectors_m{model.id}")
    without_table = await asyncio.to_thread(_told, migrated_url)

    looked_for = int(before.split()[0])
    assert before.endswith("looked for, all valid")
    assert with_model == f"{looked_for + 1} looked for, all valid"
    assert without_lists.startswith(f"Missing: {partition}_lists; searches read all vectors until")
    assert with_lists == f"{looked_for + 2} looked for, all valid"
    assert without_key == without_table
    assert without_key.startswith(f"Missing: {_KEY}; make them as")


def _told(url: str) -> str:
    try:
        return database_checks(url)["indexes"]()
    except Exception as error:  # noqa: BLE001 - what it says is looked at
        return str(error)
