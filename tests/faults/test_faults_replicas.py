"""Replicas of every service: each kind is killed in turn, then all are rolled over, under load.

PostgreSQL, of which there is one, is killed and later restarted too, each time away for longer than
retries without the server's pushback last. A client that retries as our own channels do sees no
failed call, searches and runs come to their end during each disturbance, every run succeeds, and
the index is held to one from scratch. Red when channels do not retry UNAVAILABLE.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc
import pytest

from lodestone.indexer.v1 import index_run_service_pb2 as runs_pb2
from lodestone.indexer.v1 import index_run_service_pb2_grpc as runs_grpc
from lodestone.indexer.v1 import search_service_pb2 as search_pb2
from lodestone.indexer.v1 import search_service_pb2_grpc as search_grpc
from services.runtime.channel import connect
from tests.faults.cluster import Cluster, balanced, caller, make_cluster
from tests.faults.conftest import new_database
from tests.faults.trees import Editor, write_generated
from tests.faults.truth import check_truth

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.postgres import Database
    from tests.support.postgres_server import Server

_NAME = "replicas"
_CALL_SECONDS = 10.0
_RUN_SECONDS = 60.0
_DRAIN_SECONDS = 10.0
_AWAY_SECONDS = 2.0
"""How long PostgreSQL is away at least: longer than gRPC's own backoff, as a failover is."""


@pytest.fixture(scope="module")
def shared_cluster(
    folder: Path, roots: Path, server: Server, database_server: Database
) -> Iterator[Cluster]:
    """Two io, two embed and three indexers over a PostgreSQL; the reference is on another one."""
    url, reference_url = new_database(server.database), new_database(database_server)
    cluster = make_cluster(folder, roots, url, reference_url, replicas=3, of_each=2)
    cluster.start()
    yield cluster
    cluster.kill()
    database_server.drop(reference_url)


@dataclass
class Load:
    """A client that searches and indexes without a break, and what became of its calls."""

    channel: grpc.aio.Channel
    editor: Editor
    searches: int = 0
    runs: int = 0
    failures: list[str] = field(default_factory=list)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def search(self) -> None:
        """Searches until told to stop."""
        stub = search_grpc.SearchServiceStub(self.channel)
        request = search_pb2.SearchNodesRequest(
            parent=f"workspaces/{_NAME}", query="function value", with_text=True
        )
        while not self.stopping.is_set():
            try:
                await stub.SearchNodes(request, timeout=_CALL_SECONDS, wait_for_ready=True)
            except grpc.aio.AioRpcError as error:
                self.failures.append(f"search: {error.code()} {error.details()}")
            self.searches += 1
            await asyncio.sleep(0.02)

    async def index(self) -> None:
        """Edits a file and makes a run, until told to stop."""
        while not self.stopping.is_set():
            self.editor.step()
            await self.one_run()
            self.runs += 1

    async def one_run(self) -> None:
        """Makes a run and waits for its end as a client does."""
        stub = runs_grpc.IndexRunServiceStub(self.channel)
        request = runs_pb2.CreateIndexRunRequest(
            parent=f"workspaces/{_NAME}",
            request_id=str(uuid.uuid4()),
            mode=runs_pb2.IndexRun.MODE_INCREMENTAL,
        )
        try:
            made = await stub.CreateIndexRun(request, timeout=_CALL_SECONDS, wait_for_ready=True)
            deadline = time.monotonic() + _RUN_SECONDS
            while True:
                found = await stub.GetIndexRun(
                    runs_pb2.GetIndexRunRequest(name=made.index_run.name),
                    timeout=_CALL_SECONDS,
                    wait_for_ready=True,
                )
                state = runs_pb2.IndexRun.State.Name(found.index_run.state)
                if found.index_run.HasField("end_time"):
                    break
                if time.monotonic() > deadline:
                    state += " for a minute"
                    break
                await asyncio.sleep(0.05)
        except grpc.aio.AioRpcError as error:
            self.failures.append(f"index: {error.code()} {error.details()}")
            return
        if not state.startswith("STATE_SUCCEEDED"):
            self.failures.append(f"run: {state}")


@pytest.mark.timeout(240)
async def test_killing_and_rolling_over_replicas_costs_no_call(
    cluster: Cluster, server: Server
) -> None:
    folder = write_generated(cluster.roots / _NAME, _NAME, files=30, functions=6)
    async with caller(cluster) as calls:
        await calls.create(_NAME, _NAME)
        assert (await calls.run(_NAME))["state"] == "succeeded"
    load = Load(connect(balanced(cluster.indexers)), Editor(folder, _NAME))
    tasks = [asyncio.create_task(load.search()), asyncio.create_task(load.index())]
    try:
        for victim in (cluster.io, cluster.embed, *cluster.indexers[:2]):
            await asyncio.to_thread(victim.kill)
            await _progress(load)
            await asyncio.to_thread(victim.start)
        await asyncio.to_thread(server.kill, away_seconds=_AWAY_SECONDS)
        await _progress(load)
        for member in cluster.members:
            code = await asyncio.to_thread(member.terminate, _DRAIN_SECONDS)
            assert code == 0, (member.name, code)
            await _progress(load)
            await asyncio.to_thread(member.start)
        await asyncio.to_thread(server.restart, away_seconds=_AWAY_SECONDS)
        await _progress(load)
    finally:
        load.stopping.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks)
        await load.channel.close()

    assert load.failures == []
    async with caller(cluster) as calls:
        assert (await calls.run(_NAME))["state"] == "succeeded"
    await check_truth(cluster, _NAME, _NAME)


async def _progress(load: Load) -> None:
    """Returns once searches went on for a while as things are, and a run from its beginning on."""
    searches, runs = load.searches + 15, load.runs + 2  # one run may have begun before
    deadline = time.monotonic() + _RUN_SECONDS
    while load.searches < searches or load.runs < runs:
        told = (load.searches, searches, load.runs, runs, load.failures)
        assert time.monotonic() < deadline, told
        await asyncio.sleep(0.02)
