"""F12: a caller goes away while its call waits in the database: nothing of it goes on."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from lodestone.indexer.v1 import index_run_service_pb2 as runs_pb2
from lodestone.indexer.v1 import index_run_service_pb2_grpc as runs_grpc
from lodestone.indexer.v1 import search_service_pb2 as search_pb2
from lodestone.indexer.v1 import search_service_pb2_grpc as search_grpc
from tests.faults.cluster import Cluster, caller, fetch, make_cluster
from tests.faults.trees import write_generated
from tests.faults.truth import check_truth

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator
    from pathlib import Path

    import grpc

_STATEMENT_SECONDS = 300.0
"""So long that no limit of time ends what a caller left."""

_LONGEST_SECONDS = 30.0
_ALL_WAIT = """
SELECT count(*) > 0 AND bool_and(wait_event_type IS NOT DISTINCT FROM 'Lock'
    AND query_start < clock_timestamp() - interval '2 s')
FROM pg_stat_activity WHERE state = 'active'
  AND datname = current_database() AND application_name = 'lodestone-indexer'
"""
"""Everything that a call does at once has come to wait: PostgreSQL cancels no statement that it has
not got yet, and one on its way when its caller leaves waits until its time is over."""

_WAITING = """
SELECT query FROM pg_stat_activity WHERE wait_event_type = 'Lock'
  AND datname = current_database() AND application_name = 'lodestone-indexer'
"""


@pytest.fixture(scope="module")
def shared_cluster(folder: Path, roots: Path, urls: tuple[str, str]) -> Iterator[Cluster]:
    """One indexer that lets statements take their time, and whose upkeep rests meanwhile."""
    settings = {"INDEXER_DATABASE_TIMEOUT_SECONDS": str(_STATEMENT_SECONDS)}
    for task in ("VECTOR_INDEX", "TERM_INDEX", "RETENTION"):
        settings[f"INDEXER_{task}_INTERVAL_SECONDS"] = "86400"
    cluster = make_cluster(folder, roots, *urls, replicas=1, indexer=settings)
    cluster.start()
    yield cluster
    cluster.kill()


def _search(channel: grpc.aio.Channel, parent: str) -> Awaitable[Any]:
    request = search_pb2.SearchNodesRequest(parent=parent, query="total value", page_size=5)
    call: Awaitable[Any] = search_grpc.SearchServiceStub(channel).SearchNodes(request)
    return call


def _create(channel: grpc.aio.Channel, parent: str) -> Awaitable[Any]:
    request = runs_pb2.CreateIndexRunRequest(
        parent=parent, request_id=str(uuid.uuid4()), mode=runs_pb2.IndexRun.MODE_FULL
    )
    call: Awaitable[Any] = runs_grpc.IndexRunServiceStub(channel).CreateIndexRun(request)
    return call


@pytest.mark.parametrize(
    ("make", "lock"),
    [
        (_search, "LOCK TABLE node_terms IN ACCESS EXCLUSIVE MODE"),
        (_create, "SELECT FROM workspaces FOR UPDATE"),
    ],
    ids=["search", "create"],
)
async def test_what_a_caller_left_in_the_database_ends_there(
    cluster: Cluster, make: Any, lock: str
) -> None:
    """Its statement ends while what it waits for is still locked, and writes nothing.

    Red on a planted bug (`create`): work that is shielded from the end of its call.
    """
    name = f"gone-{'search' if make is _search else 'create'}"
    write_generated(cluster.roots / name, name, files=4)
    holder = await asyncpg.connect(cluster.url)
    try:
        async with caller(cluster) as calls:
            await calls.create(name, name)
            assert (await calls.run(name))["state"] == "succeeded"
            runs = await fetch(cluster.url, "SELECT count(*) FROM runs")
            await holder.execute("BEGIN")
            await holder.execute(lock)
            call = asyncio.ensure_future(make(calls.channels[0], f"workspaces/{name}"))
            await _until(cluster, _ALL_WAIT, [(True,)])
            call.cancel()
            await _until(cluster, _WAITING, [])
            await holder.execute("ROLLBACK")
            assert await calls.search(name, "total value")
            assert await fetch(cluster.url, "SELECT count(*) FROM runs") == runs
        await asyncio.gather(call, return_exceptions=True)
    finally:
        await holder.close()
    await check_truth(cluster, name, name)


async def _until(cluster: Cluster, sql: str, rows: list[Any]) -> None:
    deadline = time.monotonic() + _LONGEST_SECONDS
    while (found := await fetch(cluster.url, sql)) != rows:
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.05)
