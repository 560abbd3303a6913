"""F17: a migration that is killed half-way leaves a database that the next start upgrades."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from services.indexer.storage.migrate import HEAD
from services.runtime.exits import ExitCode
from tests.faults.cluster import Cluster, fetch
from tests.faults.members import Member, wait_died

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.postgres import Database

_TABLES = "SELECT count(*) FROM pg_class WHERE relname IN ('nodes', 'runs', 'node_terms')"


@pytest.fixture
def empty_url(database_server: Database) -> Iterator[str]:
    url = database_server.create()
    yield url
    database_server.drop(url)


def _indexer(cluster: Cluster, url: str, name: str) -> Member:
    calm = cluster.reference
    return Member(name, "indexer", cluster.folder, {**calm.settings, "DATABASE_URL": url})


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_migration_killed_half_way_is_made_by_the_next_start(
    cluster: Cluster, empty_url: str, when: str
) -> None:
    """All or nothing: no table is there after the kill, all of them after the next start.

    Red on a planted bug: a migration that commits each statement by itself.
    """
    member = _indexer(cluster, empty_url, f"migrating-{when}")
    member.spawn(f"indexer.migrate.{when}=kill")
    await asyncio.to_thread(wait_died, member, 20)
    left = await fetch(empty_url, _TABLES)

    await asyncio.to_thread(member.start)
    made = await fetch(empty_url, _TABLES)
    version = await fetch(empty_url, "SELECT version_num FROM alembic_version")
    await asyncio.to_thread(member.kill)

    assert (left[0][0], made[0][0]) == (0, 3)
    assert version[0][0] == HEAD


async def test_two_that_start_at_once_migrate_once(cluster: Cluster, empty_url: str) -> None:
    members = [_indexer(cluster, empty_url, f"twin{number}") for number in range(2)]
    for member in members:
        member.spawn()
    for member in members:
        await asyncio.to_thread(member.wait_ready)
    codes = [await asyncio.to_thread(member.terminate) for member in members]

    assert codes == [ExitCode.OK, ExitCode.OK]
    assert (await fetch(empty_url, _TABLES))[0][0] == 3
