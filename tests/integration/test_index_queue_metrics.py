"""Metrics of the queue, of leases and of the pool are what the database and the process do."""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING

import asyncpg
import pytest
from prometheus_client import REGISTRY

from services.indexer.errors import RunOwnershipLostError
from services.indexer.run import RunCounters
from services.indexer.storage.database import Database
from services.indexer.storage.queue_admin import ALL_WORKSPACES, QueueAdmin
from services.indexer.storage.queue_depth import NODES, RUNS, QueueDepth
from services.runtime.errors import DependencyUnavailableError
from tests.integration.replicas import parsed_file, replica, workspace_with_model
from tests.support.postgres import make_reachable_folder
from tests.support.postgres_server import Server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


_EXPIRE = "UPDATE runs SET lease_until = now() - interval '1 s' WHERE id = $1 RETURNING 1"
_REFUSE_COMMITS = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN RAISE EXCEPTION 'no commit'; END $$;
CREATE CONSTRAINT TRIGGER refuse AFTER UPDATE ON runs DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW EXECUTE FUNCTION refuse()
"""
"""Transactions that write a run fail as they commit."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for a server of the test's own."""
    folder = make_reachable_folder()
    yield folder
    shutil.rmtree(folder)


def _value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"lodestone_indexer_{name}", labels) or 0.0


async def test_the_gauges_tell_what_waits_and_for_how_long(database: Database) -> None:
    stores = replica(database)
    workspace, model = await workspace_with_model(stores)
    await stores.queue(workspace)
    run = await stores.take()
    await stores.apply(run, model, parsed_file("a.py", "one", "two", "three"))
    await stores.nodes.claim(run, 1)
    await stores.value("UPDATE nodes SET status_since = now() - interval '90 s' RETURNING 1")
    await stores.value("UPDATE runs SET created_at = now() - interval '70 s' RETURNING 1")
    await QueueAdmin(database).pause(ALL_WORKSPACES)

    await QueueDepth(database).look()

    assert _value("queue_nodes", status="pending") == 2
    assert _value("queue_nodes", status="processing") == 1
    assert _value("queue_nodes", status="failed") == 0
    assert 90 <= _value("queue_oldest_seconds", status="pending") < 100
    assert _value("queue_oldest_seconds", status="failed") == 0
    assert _value("unfinished_runs", state="running") == 1
    assert 70 <= _value("unfinished_run_oldest_seconds", state="running") < 80
    assert (_value("queue_holds"), _value("database_up")) == (1, 1)

    await stores.ledger.release(run)
    await QueueDepth(database).look()

    assert _value("unfinished_runs", state="running") == 0
    assert _value("unfinished_runs", state="queued") == 1


async def test_a_look_reads_no_node_that_is_done(database: Database) -> None:
    """Red with a count over all nodes: a Seq Scan of the table."""
    stores = replica(database)
    workspace, model = await workspace_with_model(stores)
    await stores.queue(workspace)
    run = await stores.take()
    files = [parsed_file(f"{i}.py", *(f"{i}-{j}" for j in range(50))) for i in range(60)]
    await stores.apply(run, model, *files)
    await stores.value("UPDATE nodes SET status = 'embedded' WHERE id % 100 <> 0 RETURNING 1")
    await stores.value("VACUUM ANALYZE nodes")

    async with database.connection() as connection:
        plan = "\n".join(row[0] for row in await connection.fetch(f"EXPLAIN {NODES}", 1000))
        runs = "\n".join(row[0] for row in await connection.fetch(f"EXPLAIN {RUNS}", 1000))

    assert all(f"nodes_{name}" in plan for name in ("pending", "leased", "failed")), plan
    assert "Seq Scan on nodes" not in plan
    assert runs


async def test_a_take_over_counts_an_expired_lease_and_the_old_owner_a_fenced_write(
    database: Database,
) -> None:
    one, other = replica(database), replica(database)
    workspace, _ = await workspace_with_model(one)
    await one.queue(workspace)
    lost = await one.take()
    expired, fenced = _value("lease_expiries_total"), _value("fenced_writes_total")
    await one.value(_EXPIRE, lost.id)

    await other.take()
    assert _value("lease_expiries_total") - expired == 1
    with pytest.raises(RunOwnershipLostError):
        await one.ledger.record(lost, RunCounters())

    assert _value("fenced_writes_total") - fenced == 1


async def test_taking_a_run_that_waits_is_no_expired_lease(database: Database) -> None:
    stores = replica(database)
    workspace, _ = await workspace_with_model(stores)
    await stores.queue(workspace)
    expired = _value("lease_expiries_total")

    await stores.take()

    assert _value("lease_expiries_total") == expired


async def test_the_pool_tells_its_use_and_what_was_waited(migrated_url: str) -> None:
    database = Database(migrated_url, connections=2, timeout_seconds=30)
    await database.open()
    waits = _value("pool_wait_seconds_count")
    waited = _value("pool_wait_seconds_sum")
    used = _value("pool_connections_used")

    async def use(seconds: float) -> None:
        async with database.connection() as connection:
            await connection.fetchval("SELECT pg_sleep($1)", seconds)

    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(use(0.2))
        await asyncio.sleep(0.1)
        assert _value("pool_connections_used") - used == 2

    assert _value("pool_connections_limit") == 2
    assert _value("pool_connections_used") == used
    assert _value("pool_wait_seconds_count") - waits == 3
    assert _value("pool_wait_seconds_sum") - waited >= 0.1
    await database.close()


async def test_a_database_that_is_away_is_told(folder: Path) -> None:
    server = Server(folder)
    database = Database(server.url, connections=2, timeout_seconds=5)
    await database.open()
    errors = _value("database_errors_total", kind="unavailable")
    server.stop()

    with pytest.raises(DependencyUnavailableError):
        await QueueDepth(database).look()

    assert _value("database_up") == 0
    assert _value("database_errors_total", kind="unavailable") - errors == 1
    await database.close()


@pytest.mark.parametrize(("cancel", "state"), [(False, "stale"), (True, "cancelled")])
async def test_a_run_that_nobody_finishes_counts_as_well(
    database: Database, *, cancel: bool, state: str
) -> None:
    """Red when only ends of owners count: then no alert tells of runs that kill their owners."""
    stores = replica(database)
    workspace, _ = await workspace_with_model(stores)
    await stores.queue(workspace)
    ended = _value("runs_total", state=state)
    run = await stores.take()
    if cancel:
        await stores.ledger.release(run)
        await stores.ledger.request_cancel(run)
    else:
        await stores.value(_EXPIRE, run.id)
        assert await stores.ledger.take(max_attempts=1) is None

    assert _value("runs_total", state=state) - ended == 1


@pytest.mark.parametrize("state", ["succeeded", "cancelled", "stale"])
async def test_a_run_counts_once_when_its_end_is_committed_and_never_before(
    database: Database, state: str
) -> None:
    """Red when it counts as its row is written: an end that failed counts, and the next one too."""
    stores = replica(database)
    workspace, _ = await workspace_with_model(stores)
    await stores.queue(workspace)
    run = await stores.take()
    if state == "cancelled":
        await stores.ledger.release(run)
    elif state == "stale":
        await stores.value(_EXPIRE, run.id)

    async def end() -> None:
        if state == "succeeded":
            await stores.ledger.finish(run, None)
        elif state == "cancelled":
            await stores.ledger.request_cancel(run)
        else:
            await stores.ledger.take(max_attempts=1)

    def ends() -> float:
        states = ("succeeded", "succeeded_with_warnings", "failed", "cancelled", "stale")
        return sum(_value("runs_total", state=each) for each in states)

    before, of_state = ends(), _value("runs_total", state=state)
    async with database.connection() as connection:
        await connection.execute(_REFUSE_COMMITS)
    with pytest.raises(asyncpg.RaiseError, match="no commit"):
        await end()
    assert ends() == before

    async with database.connection() as connection:
        await connection.execute("DROP TRIGGER refuse ON runs")
    await end()
    assert ends() == before + 1
    assert _value("runs_total", state=state) == of_state + 1
