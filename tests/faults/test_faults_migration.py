"""F17: a migration that is killed half-way leaves a database that the next start upgrades."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING

import asyncpg
import pytest

from services.indexer.storage.migrate import HEAD
from services.runtime.exits import ExitCode
from tests.faults.cluster import Caller, Cluster, caller, fetch
from tests.faults.conftest import NIGHTLY_SEEDS, SEEDS
from tests.faults.members import Member, wait_died
from tests.faults.trees import write_generated
from tests.support.index_rows import rows_in
from tests.support.invariants import broken_rules
from tests.support.old_schema import copy_index, revisions_after, upgrade_to
from tests.support.stack import clean_environment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lodestone.indexer.v1 import search_service_pb2 as search_pb2
    from tests.support.postgres import Database

_OLD = "0010"
_QUERY = "adds total value of work"
_LONGEST_SECONDS = 90.0
_HOLD_KEY = 0x0DD_10CC
_HOLD = """
CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_advisory_xact_lock({key});
  RETURN NULL;
END $$;
CREATE TRIGGER hold AFTER UPDATE ON alembic_version FOR EACH ROW
  WHEN (NEW.version_num = '{revision}') EXECUTE FUNCTION hold()
"""
"""Lets a migration stand at the end of a revision for as long as somebody else has the lock."""

_STANDS = """
SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database
WHERE l.locktype = 'advisory' AND NOT l.granted AND d.datname = current_database()
"""
_OTHERS = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""
_OBJECTS = """
SELECT relkind::text || ' ' || relname || coalesce(' ' || attname, '') FROM pg_class c
LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND attnum > 0 AND NOT attisdropped
WHERE relnamespace = 'public'::regnamespace
UNION ALL SELECT 'trigger ' || tgname FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1
"""

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


@pytest.mark.timeout(300)
async def test_a_migration_of_an_index_killed_between_revisions_loses_nothing(
    cluster: Cluster, empty_url: str
) -> None:
    """The older index is untouched after each kill, and searchable at once after the next start.

    Red on a planted bug: a revision that commits what it made.
    """
    name = "older"
    write_generated(cluster.roots / name, name, files=10)
    async with caller(cluster) as calls:
        await calls.create(name, name)
        assert (await calls.run(name))["state"] == "succeeded"
        expected = _places(await calls.search(name, _QUERY))
    await asyncio.to_thread(upgrade_to, empty_url, _OLD)
    await copy_index(cluster.url, empty_url)
    rows = await asyncio.to_thread(rows_in, cluster.url, name)
    objects = await fetch(empty_url, _OBJECTS)

    for revision in _killed_at():
        await _kill_at(empty_url, revision)
        assert await fetch(empty_url, "SELECT version_num FROM alembic_version") == [(_OLD,)]
        assert await fetch(empty_url, _OBJECTS) == objects
        assert await asyncio.to_thread(rows_in, empty_url, name) == rows

    member = _indexer(cluster, empty_url, "upgrading")
    await asyncio.to_thread(member.start)
    try:
        async with Caller(empty_url, [member.address]) as calls:
            found = _places(await calls.search(name, _QUERY))
            kept = await asyncio.to_thread(rows_in, empty_url, name)
            again = await calls.run(name)
    finally:
        await asyncio.to_thread(member.kill)

    assert found == expected
    assert len(found) > 1
    assert kept == rows
    assert (again["state"], again["forwards"]) == ("succeeded", 0)
    assert await fetch(empty_url, "SELECT version_num FROM alembic_version") == [(HEAD,)]
    assert [rule for rule in await broken_rules(empty_url) if not rule.startswith("I6")] == []


def _killed_at() -> list[str]:
    """Returns all revisions for the nightly run, and else the first and the last."""
    revisions = revisions_after(_OLD)
    return revisions if SEEDS >= NIGHTLY_SEEDS else [revisions[0], revisions[-1]]


def _places(hits: list[search_pb2.NodeHit]) -> list[tuple[str, int, str]]:
    return [(hit.path, hit.start_line, hit.text) for hit in hits]


async def _kill_at(url: str, revision: str) -> None:
    """Begins to migrate, and kills the process when a revision was made and none committed."""
    holder = await asyncpg.connect(url)
    await holder.execute(_HOLD.format(key=_HOLD_KEY, revision=revision))
    await holder.execute(f"SELECT pg_advisory_lock({_HOLD_KEY})")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.indexer.migrate",
        env={**clean_environment(), "LODESTONE_DATABASE_URL": url},
    )
    try:
        await _until_count(holder, _STANDS, 1)
        assert process.returncode is None
    finally:
        process.kill()
        await process.wait()
        await holder.execute(f"SELECT pg_advisory_unlock({_HOLD_KEY})")
        await _until_count(holder, _OTHERS, 0)
        await holder.execute("DROP FUNCTION hold CASCADE")
        await holder.close()


async def _until_count(connection: asyncpg.Connection, sql: str, count: int) -> None:
    deadline = time.monotonic() + _LONGEST_SECONDS
    while (found := await connection.fetchval(sql)) != count:
        assert time.monotonic() < deadline, (sql, found)
        await asyncio.sleep(0.05)
