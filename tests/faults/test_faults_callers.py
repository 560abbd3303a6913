"""F5: the network between a caller and the indexer is cut, slow, or lets half through, over TCP.

The caller has our own channel, with its retries and deadlines, and names its requests.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from lodestone.indexer.v1 import index_run_service_pb2 as runs_pb2
from lodestone.indexer.v1 import index_run_service_pb2_grpc as runs_grpc
from lodestone.indexer.v1 import search_service_pb2 as search_pb2
from lodestone.indexer.v1 import search_service_pb2_grpc as search_grpc
from services.runtime.channel import connect
from tests.faults.cluster import Cluster, caller, fetch, free_ports, make_cluster
from tests.faults.proxy import FaultProxy, Harm
from tests.faults.trees import write_generated
from tests.faults.truth import check_truth

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Iterator
    from pathlib import Path

_DEADLINE_SECONDS = 1.5
_SPARE_SECONDS = 4.0
"""For a busy machine to tell the caller that its time is over."""

_PATIENT_SECONDS = 30.0
_LATENCY_SECONDS = 2.0
_QUEUE = runs_pb2.CreateIndexRunRequest.IF_RUNNING_QUEUE
"""A request that is not known again makes another run, and joins none."""

_SILENT = {Harm.BLACK_HOLE, Harm.ONE_WAY, Harm.LATENCY}
"""No answer comes through in time."""

_GONE = {"DEADLINE_EXCEEDED", "UNAVAILABLE"}


@pytest.fixture(scope="module")
def shared_cluster(folder: Path, roots: Path, urls: tuple[str, str]) -> Iterator[Cluster]:
    """One indexer that listens on a port."""
    cluster = make_cluster(folder, roots, *urls, replicas=1)
    (cluster.indexers[0].port,) = free_ports(1)
    cluster.start()
    yield cluster
    cluster.kill()


@pytest.fixture
async def proxied(cluster: Cluster) -> AsyncIterator[tuple[FaultProxy, grpc.aio.Channel]]:
    """A proxy before the indexer, and a channel through it."""
    (port,) = free_ports(1)
    proxy = FaultProxy(port, cluster.indexers[0].port)
    proxy.latency_seconds = _LATENCY_SECONDS
    async with proxy.serving():
        channel = connect(f"127.0.0.1:{port}")
        yield proxy, channel
        await channel.close()


@pytest.mark.parametrize("harm", [harm for harm in Harm if harm is not Harm.NONE])
async def test_no_call_outlives_its_deadline_and_a_request_made_again_makes_one_run(
    cluster: Cluster, proxied: tuple[FaultProxy, grpc.aio.Channel], harm: Harm
) -> None:
    """Each call ends in time while the harm lasts; made again with its id, it is found done.

    Red on planted bugs: channels that make calls without their deadline, a request whose id is not
    looked at.
    """
    proxy, channel = proxied
    name = f"called-{harm.replace('_', '-')}"
    write_generated(cluster.roots / name, name, files=6)
    create = _request(name)
    async with caller(cluster) as calls:
        await calls.create(name, name)
        before = await calls.run(name)
        await _search(channel, name, _PATIENT_SECONDS)  # connects
        proxy.harm = harm
        run_before = runs_pb2.IndexRun(name=f"workspaces/{name}/indexRuns/{before['id']}")
        codes = await asyncio.gather(
            _code(_search(channel, name)),
            _code(_create(channel, create)),
            _code(_create(channel, create)),
            _code(_watch(channel, run_before)),
        )
        if harm is Harm.LATENCY:  # slow is not away
            await _search(channel, name, _PATIENT_SECONDS)
        proxy.harm = Harm.NONE
        made = await _create(channel, create, _PATIENT_SECONDS)
        again = await _create(channel, create, _PATIENT_SECONDS)
        ended = await calls.wait(made.index_run)

    if harm in _SILENT:
        assert set(codes) == {"DEADLINE_EXCEEDED"}
    assert set(codes) <= _GONE | ({"OK"} if harm is Harm.SLOW else set())
    assert again.index_run.name == made.index_run.name
    assert (ended["state"], ended["attempt"], ended["forwards"]) == ("succeeded", 1, 0)
    assert await _count_runs(cluster, name) == 2
    await check_truth(cluster, name, name)


async def test_a_run_whose_answer_is_lost_is_found_by_the_retry_of_the_channel(
    cluster: Cluster, proxied: tuple[FaultProxy, grpc.aio.Channel]
) -> None:
    """The connection is cut once the run is there: the caller sees one answer, of one run.

    Red where the id of the request is not looked at, and where channels do not retry.
    """
    proxy, channel = proxied
    name = "called-cut"
    write_generated(cluster.roots / name, name, files=6)
    create = _request(name)
    async with caller(cluster) as calls:
        await calls.create(name, name)
        before = await calls.run(name)
        await _search(channel, name, _PATIENT_SECONDS)  # connects
        proxy.harm = Harm.ONE_WAY
        making = asyncio.create_task(_create(channel, create, _PATIENT_SECONDS))
        await _until_made(cluster, name, 2)
        assert not making.done()
        proxy.harm = Harm.RESET
        proxy.harm = Harm.NONE
        made = await making
        ended = await calls.wait(made.index_run)

    assert not made.index_run.name.endswith(str(before["id"]))
    assert ended["state"] == "succeeded"
    assert await _count_runs(cluster, name) == 2
    await check_truth(cluster, name, name)


async def _until_made(cluster: Cluster, name: str, runs: int) -> None:
    deadline = time.monotonic() + _PATIENT_SECONDS
    while await _count_runs(cluster, name) < runs:
        assert time.monotonic() < deadline, "no run was made"
        await asyncio.sleep(0.02)


def _request(name: str) -> runs_pb2.CreateIndexRunRequest:
    """Returns a request for a run of a workspace, with an id of its own."""
    return runs_pb2.CreateIndexRunRequest(
        parent=f"workspaces/{name}",
        request_id=str(uuid.uuid4()),
        mode=runs_pb2.IndexRun.MODE_INCREMENTAL,
        if_running=_QUEUE,
    )


async def _code(call: Awaitable[Any]) -> str:
    """Returns how a call ended, which must be about in time."""
    started_at = time.monotonic()
    try:
        async with asyncio.timeout(_DEADLINE_SECONDS + _SPARE_SECONDS):
            await call
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    except TimeoutError:
        raise AssertionError(f"goes on after {time.monotonic() - started_at:.1f} s") from None
    return "OK"


async def _search(
    channel: grpc.aio.Channel, workspace: str, timeout_seconds: float = _DEADLINE_SECONDS
) -> None:
    request = search_pb2.SearchNodesRequest(
        parent=f"workspaces/{workspace}", query="total value", page_size=5
    )
    await search_grpc.SearchServiceStub(channel).SearchNodes(
        request, timeout=timeout_seconds, wait_for_ready=True
    )


async def _create(
    channel: grpc.aio.Channel,
    request: runs_pb2.CreateIndexRunRequest,
    timeout_seconds: float = _DEADLINE_SECONDS,
) -> runs_pb2.CreateIndexRunResponse:
    made: runs_pb2.CreateIndexRunResponse = await runs_grpc.IndexRunServiceStub(
        channel
    ).CreateIndexRun(request, timeout=timeout_seconds, wait_for_ready=True)
    return made


async def _watch(channel: grpc.aio.Channel, run: runs_pb2.IndexRun) -> None:
    request = runs_pb2.WatchIndexRunRequest(name=run.name)
    async for _ in runs_grpc.IndexRunServiceStub(channel).WatchIndexRun(
        request, timeout=_DEADLINE_SECONDS, wait_for_ready=True
    ):
        pass


async def _count_runs(cluster: Cluster, workspace: str) -> int:
    rows = await fetch(
        cluster.url,
        "SELECT count(*) FROM runs r JOIN workspaces w ON w.id = r.workspace_id WHERE w.name = $1",
        workspace,
    )
    return int(rows[0][0])
