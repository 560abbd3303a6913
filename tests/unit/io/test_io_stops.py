"""Reads stop when nobody waits for them, and the service stops when it is told to."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from lodestone.io.v1 import (
    root_service_pb2,
    root_service_pb2_grpc,
    snippet_service_pb2,
    snippet_service_pb2_grpc,
    tree_pb2,
)
from services.io import metrics
from services.io.content import file_digest
from services.runtime.status import read_rpc_error
from tests.unit.io.harness import MakeFiles, serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

FILES = 500
FILE_BYTES = 2 << 20
TREE = tree_pb2.Tree(root="roots/test")
pytestmark = pytest.mark.slow


def long_read(top: Path) -> snippet_service_pb2.ReadSnippetsRequest:
    """Makes sparse files whose verified reads take a second or more in all."""
    digest = file_digest(bytes(FILE_BYTES))
    for number in range(FILES):
        with (top / f"f{number}").open("wb") as file:
            file.truncate(FILE_BYTES)
    return snippet_service_pb2.ReadSnippetsRequest(
        tree=TREE,
        refs=[
            snippet_service_pb2.SnippetRef(path=f"f{n}", end_byte=1, file_digest=digest)
            for n in range(FILES)
        ],
    )


async def eventually(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it did not come true"
        await asyncio.sleep(0.001)


def files_read() -> int:
    return int(metrics.READ_FILES.labels("read")._value.get())


async def test_a_read_that_the_caller_leaves_reads_no_further(
    make_files: MakeFiles, tmp_path: Path
) -> None:
    """Red when `Reader` does not clear the batch: all 500 files are read for nobody."""
    top = make_files({})
    request = long_read(top)
    async with serve(top, tmp_path / "s") as channel:
        stub: Any = snippet_service_pb2_grpc.SnippetServiceStub(channel)
        before = files_read()
        call = stub.ReadSnippets(request)
        await eventually(lambda: files_read() > before + 5)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        one = snippet_service_pb2.ReadSnippetsRequest(tree=TREE, refs=request.refs[:1])
        assert len((await stub.ReadSnippets(one)).results) == 1
    # The service is closed: its threads are gone, and with them all that they would have read.
    assert files_read() - before < FILES / 2


@asynccontextmanager
async def io_process(top: Path, socket: Path) -> AsyncIterator[tuple[int, Any]]:
    """Runs the service in a process of its own; yields its id and how to wait for its end."""
    settings = {
        "LODESTONE_IO_LISTEN": f"unix:{socket}",
        "LODESTONE_IO_ROOTS": f"test={top}",
        "LODESTONE_IO_PARSE_WORKERS": "1",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.io", env=os.environ | settings, stderr=subprocess.DEVNULL
    )
    try:
        async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
            roots: Any = root_service_pb2_grpc.RootServiceStub(channel)
            request = root_service_pb2.ListRootsRequest()
            async with asyncio.timeout(60):
                while True:
                    try:
                        await roots.ListRoots(request, wait_for_ready=True)
                        break
                    except grpc.aio.AioRpcError:  # it is starting
                        await asyncio.sleep(0.01)
        yield process.pid, process.wait
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


async def test_with_nothing_to_do_it_stops_at_once_and_takes_its_workers_along(
    make_files: MakeFiles, tmp_path: Path
) -> None:
    """Red when the stop waits for the whole of its grace."""
    async with io_process(make_files({}), tmp_path / "s") as (pid, wait):
        await eventually(lambda: len(children_of(pid)) == 1)
        [worker] = children_of(pid)
        started = time.monotonic()
        os.kill(pid, signal.SIGTERM)
        assert await wait() == 0
        assert time.monotonic() - started < 1.0
    await eventually(lambda: not Path(f"/proc/{worker}").exists())


async def test_reads_in_flight_finish_and_new_ones_are_refused(
    make_files: MakeFiles, tmp_path: Path
) -> None:
    """Red when the server is told to stop while calls are inside: new ones end CANCELLED."""
    top = make_files({})
    request = long_read(top)
    async with (
        io_process(top, tmp_path / "s") as (pid, wait),
        grpc.aio.insecure_channel(f"unix:{tmp_path}/s") as channel,
    ):
        stub: Any = snippet_service_pb2_grpc.SnippetServiceStub(channel)
        call = asyncio.ensure_future(stub.ReadSnippets(request))
        await eventually(lambda: bytes_read_by(pid) > 20 * FILE_BYTES)
        os.kill(pid, signal.SIGTERM)
        one = snippet_service_pb2.ReadSnippetsRequest(tree=TREE, refs=request.refs[:1])
        refusal = None
        while refusal is None:
            assert not call.done(), "the long read must outlast the refusal"
            try:
                await stub.ReadSnippets(one)
            except grpc.aio.AioRpcError as error:
                refusal = read_rpc_error(error)
        answer = await call
        assert await wait() == 0
    assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "ERROR_REASON_SHUTTING_DOWN")
    assert [result.content for result in answer.results] == [b"\0"] * FILES


def bytes_read_by(pid: int) -> int:
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])
