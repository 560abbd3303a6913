"""F11: SIGTERM in a batch, twice, during the start, during the drain."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from typing import TYPE_CHECKING

import asyncpg
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.runtime.exits import ExitCode
from tests.faults.cluster import Cluster, caller, fetch
from tests.faults.trees import write_generated
from tests.faults.truth import check_truth

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.faults.members import Member

_GRACE_SECONDS = 3.0
"""The drain of the indexers of a cluster; io and embed have less."""

_EXIT_SECONDS = _GRACE_SECONDS + 2.0

_BUSY_SECONDS = 2.5
"""For a busy machine; less than the grace."""

_LONGEST_SECONDS = 30.0
_WAITS_FOR_LOCK = """
SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'
  AND datname = current_database() AND application_name = 'lodestone-indexer')
"""
_CALL_STANDS = """
SELECT EXISTS (SELECT FROM nodes
  WHERE status = 'processing' AND status_since < now() - interval '1.5 s')
"""
"""Nodes were claimed longer ago than it takes to make the call for them."""


@pytest.fixture
def doomed(cluster: Cluster) -> Iterator[Member]:
    """The one indexer that runs; it is to be started by the test."""
    for member in cluster.indexers:
        member.kill()
    yield cluster.indexers[0]
    cluster.indexers[0].kill()


@pytest.mark.parametrize(
    "point",
    [
        "indexer.plan.before",
        "indexer.claim.after",
        "indexer.fetch.after",
        "indexer.forward.before",
        "indexer.commit.before",
        "indexer.finish.before",
    ],
)
async def test_a_stop_in_a_batch_gives_the_work_back_without_burning_an_attempt(
    cluster: Cluster, doomed: Member, point: str
) -> None:
    """The run is queued again at once, not when a lease is over, and the next owner ends it.

    Red on planted bugs: a release that leaves the attempt of nodes, a stop that only cancels.
    """
    name = f"stop-{point.replace('.', '-')}"
    write_generated(cluster.roots / name, name)
    doomed.start(f"{point}=sleep:30@{1 if 'finish' in point else 2}")
    async with caller(cluster, [doomed]) as calls:
        await calls.create(name, name)
        run = await calls.begin(name)
        await calls.wait(run, lambda row: row["forwards" if "plan" not in point else "attempt"] > 0)
        started_at = time.monotonic()
        code = await asyncio.to_thread(doomed.terminate)
        took_seconds = time.monotonic() - started_at
        row = await calls.wait(run, lambda _: True)
        nodes = await fetch(
            cluster.url,
            "SELECT count(*) FILTER (WHERE status = 'processing') AS working, "
            "max(attempt) FILTER (WHERE status = 'pending') AS attempts FROM nodes",
        )
        doomed.start()
        ended = await calls.wait(run)

    assert code == ExitCode.OK
    assert took_seconds < _EXIT_SECONDS
    assert (row["state"], row["attempt"], row["owner"]) == ("queued", 0, None)
    assert nodes[0]["working"] == 0
    assert nodes[0]["attempts"] in {0, None}
    assert (ended["state"], ended["attempt"]) == ("succeeded", 1)
    await check_truth(cluster, name, name)


async def test_a_second_stop_ends_at_once_and_the_lease_hands_the_run_on(
    cluster: Cluster, doomed: Member
) -> None:
    name = "stop-twice"
    write_generated(cluster.roots / name, name)
    doomed.start("indexer.forward.before=sleep:30@2+")
    async with caller(cluster) as calls:
        await calls.create(name, name)
        run = await calls.begin(name)
        await calls.wait(run, lambda row: row["forwards"] > 0)
        doomed.signal(signal.SIGTERM)
        doomed.signal(signal.SIGTERM)
        code = await asyncio.to_thread(doomed.wait, _EXIT_SECONDS)
        doomed.start()
        ended = await calls.wait(run)

    assert code in {ExitCode.INTERRUPTED, ExitCode.OK}  # both may arrive as one
    assert ended["state"] == "succeeded"
    await check_truth(cluster, name, name)


@pytest.mark.parametrize("service", ["io", "embed", "indexer0"])
async def test_a_stop_during_the_start_is_not_lost(cluster: Cluster, service: str) -> None:
    """Whenever it comes: before the handlers it is a death, after them an orderly end.

    Red on a planted bug: handlers that are set once the service serves.
    """
    (member,) = (item for item in cluster.members if item.name == service)
    for delay_seconds in (0.05, 0.15, 0.25, 0.35, 0.5):
        member.kill()
        member.spawn()
        await asyncio.sleep(delay_seconds)
        member.signal(signal.SIGTERM)
        code = await asyncio.to_thread(member.wait, _EXIT_SECONDS)
        assert code in {-signal.SIGTERM, ExitCode.OK}, (delay_seconds, code, member.log[-2000:])


@pytest.mark.parametrize("service", ["io", "embed"])
async def test_a_service_stopped_in_a_call_ends_in_time_and_costs_the_run_a_wait(
    cluster: Cluster, service: str
) -> None:
    name = f"stop-{service}"
    write_generated(cluster.roots / name, name)
    member = _start_standing(cluster, service, 1.5)
    async with caller(cluster) as calls:
        await calls.create(name, name)
        run = await calls.begin(name)
        await calls.wait(run, lambda row: row["forwards"] > 0)
        started_at = time.monotonic()
        member.signal(signal.SIGTERM)
        code = await asyncio.to_thread(member.wait, _EXIT_SECONDS)
        took_seconds = time.monotonic() - started_at
        member.start()
        ended = await calls.wait(run)

    assert code == ExitCode.OK
    assert took_seconds < _EXIT_SECONDS
    assert (ended["state"], ended["attempt"], ended["nodes_failed"]) == ("succeeded", 1, 0)
    await check_truth(cluster, name, name)


@pytest.mark.parametrize("signals", [1, 2])
async def test_a_stop_that_cannot_give_the_run_back_ends_in_time_and_the_lease_hands_it_on(
    cluster: Cluster, doomed: Member, signals: int
) -> None:
    """The row that giving back needs is locked by another: the drain stands until its time is over.

    It ends as one that could not end in order. A second signal in the middle of it ends the
    process at once. Red on a planted bug (`2`): a second signal that is passed over.
    """
    name = f"stop-drain-{signals}"
    write_generated(cluster.roots / name, name)
    doomed.start("indexer.forward.before=sleep:60@2+")
    async with caller(cluster, [doomed]) as calls, _locked(cluster) as connection:
        await calls.create(name, name)
        run = await calls.begin(name)
        await calls.wait(run, lambda row: row["forwards"] > 0)
        await connection.execute("SELECT FROM workspaces WHERE name = $1 FOR UPDATE", name)
        doomed.signal(signal.SIGTERM)
        await _until_true(cluster, _WAITS_FOR_LOCK)
        started_at = time.monotonic()
        if signals == 2:
            doomed.signal(signal.SIGTERM)
        code = await asyncio.to_thread(doomed.wait, _LONGEST_SECONDS)
        took_seconds = time.monotonic() - started_at
        await connection.execute("ROLLBACK")
        doomed.start()
        ended = await calls.wait(run)

    assert took_seconds < (_EXIT_SECONDS if signals == 1 else 0.0) + _BUSY_SECONDS
    assert code == (ExitCode.FAILED if signals == 1 else ExitCode.INTERRUPTED)
    assert (ended["state"], ended["attempt"], ended["nodes_failed"]) == ("succeeded", 2, 0)
    await check_truth(cluster, name, name)


@pytest.mark.parametrize("service", ["io", "embed"])
async def test_a_second_stop_in_the_drain_of_a_service_ends_it_at_once(
    cluster: Cluster, service: str
) -> None:
    """A call is inside, which the first signal lets end; the run waits for the next process.

    Red on a planted bug: a second signal that is passed over.
    """
    name = f"stop-drain-{service}"
    write_generated(cluster.roots / name, name)
    member = _start_standing(cluster, service, 60)
    async with caller(cluster) as calls:
        await calls.create(name, name)
        run = await calls.begin(name)
        await _until_true(cluster, _CALL_STANDS)
        member.signal(signal.SIGTERM)
        await _until_draining(member)
        member.signal(signal.SIGTERM)
        code = await asyncio.to_thread(member.wait, _LONGEST_SECONDS)
        member.start()
        ended = await calls.wait(run)

    assert code == ExitCode.INTERRUPTED
    assert (ended["state"], ended["attempt"], ended["nodes_failed"]) == ("succeeded", 1, 0)
    await check_truth(cluster, name, name)


def _start_standing(cluster: Cluster, service: str, seconds: float) -> Member:
    """Starts io or embed anew, so that calls after the first stand so long before their work."""
    member = cluster.io if service == "io" else cluster.embed
    point = "io.read.before" if service == "io" else "embed.forward.before"
    member.kill()
    member.start(f"{point}=sleep:{seconds}@2+")
    return member


@contextlib.asynccontextmanager
async def _locked(cluster: Cluster) -> AsyncIterator[asyncpg.Connection]:
    """Yields a connection in a transaction."""
    connection = await asyncpg.connect(cluster.url)
    try:
        await connection.execute("BEGIN")
        yield connection
    finally:
        await connection.close()


async def _until_true(cluster: Cluster, sql: str) -> None:
    deadline = time.monotonic() + _LONGEST_SECONDS
    while not (await fetch(cluster.url, sql))[0][0]:
        assert time.monotonic() < deadline, sql
        await asyncio.sleep(0.05)


async def _until_draining(member: Member) -> None:
    """Returns once a service says that it serves no more, and still answers."""
    async with grpc.aio.insecure_channel(member.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        while True:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=_LONGEST_SECONDS)
            if answer.status == health_pb2.HealthCheckResponse.NOT_SERVING:
                return
            await asyncio.sleep(0.02)
