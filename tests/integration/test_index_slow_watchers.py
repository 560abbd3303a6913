"""P8: who watches a run and reads nothing holds nothing up, and is sent no backlog."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import asyncpg
import grpc

from lodestone.indexer.v1 import index_run_service_pb2 as runs_pb2
from lodestone.indexer.v1 import index_run_service_pb2_grpc as runs_grpc
from tests.integration.indexing import Mode, State, indexing
from tests.integration.samples import write_many

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.hooks import Hook

_WATCHERS = 10
_NODES = 150
_MOST_MESSAGES = 4
"""That of the beginning, one that was on its way, the newest, and the end."""


async def _version(url: str) -> int:
    """Returns how often the only run changed."""
    connection = await asyncpg.connect(url)
    try:
        return int(await connection.fetchval("SELECT version FROM runs"))
    finally:
        await connection.close()


async def _read(call: Any) -> list[State.ValueType]:
    """Returns the states that a watch tells from now on; what only says that it lives aside."""
    return [message.index_run.state async for message in call if message.HasField("index_run")]


async def test_watchers_that_read_nothing_neither_hold_up_a_run_nor_are_sent_a_backlog(
    roots: Path, sockets: Path, migrated_url: str, hook: Hook
) -> None:
    """A state is larger than what a stream sends ahead, as the run names much.

    Red with a queue of states for each watcher, and with a run that waits for its watchers.
    """
    write_many(roots / "tree", _NODES)
    none = "/".join(["x" * 200] * 8)
    paths = ["*.py", *(f"none_{number}/{none}" for number in range(200))]
    async with indexing(
        roots, sockets, migrated_url, embed=hook.app, embed_batch_nodes=4
    ) as services:
        await services.create("tree", "tree")
        hook.hold()
        run = await services.begin("tree", Mode.MODE_SCOPED, paths=paths)
        request = runs_pb2.WatchIndexRunRequest(name=run.name)
        # A window that is not made larger for who reads much beside.
        fixed = [("grpc.http2.bdp_probe", 0)]
        async with grpc.aio.insecure_channel(f"unix:{sockets}/indexer", options=fixed) as channel:
            stub = runs_grpc.IndexRunServiceStub(channel)
            unread = [stub.WatchIndexRun(request) for _ in range(_WATCHERS)]
            for call in unread:
                await call.initial_metadata()
            await hook.reached.wait()
            hook.go_on.set()

            ended = await services.wait(run)
            version = await _version(services.url)
            told = await asyncio.gather(*(_read(call) for call in unread))

    assert ended.state == State.STATE_SUCCEEDED
    assert run.ByteSize() > 256 * 1024
    assert version > 3 * _MOST_MESSAGES, "the run changed more often than it is told"
    assert {states[-1] for states in told} == {State.STATE_SUCCEEDED}
    assert max(map(len, told)) <= _MOST_MESSAGES
