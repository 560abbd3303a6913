"""A disk that does not answer holds up whoever reads from it, and not the end of the service."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from lodestone.io.v1 import scan_service_pb2, scan_service_pb2_grpc, tree_pb2
from tests.unit.io.service_process import Service, children_of

if TYPE_CHECKING:
    from tests.unit.io.harness import MakeFiles

pytestmark = pytest.mark.slow

DRAIN_SECONDS, STOP_SECONDS = 0.5, 2.0


def has_ended(pid: int) -> bool:
    """Tells whether a process has ended, be it that its parent was not told yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace makes the disk slow")
async def test_a_stop_does_not_wait_for_a_disk_that_does_not_answer(
    make_files: MakeFiles, tmp_path: Path
) -> None:
    """The read of a file takes a minute (F11). Red where the stop waits for all threads to end."""
    top = make_files({"stuck.py": "x = 1\n", "a.py": "x = 2\n"})

    class SlowService(Service):
        command = (
            "strace", "-f", "-qq", "-o", "/dev/null", "-P", str(top / "stuck.py"),
            "-e", "inject=pread64:delay_enter=60000000",
        )  # fmt: skip

    service = SlowService(top, tmp_path, drain_seconds=DRAIN_SECONDS)
    try:
        async with grpc.aio.insecure_channel(service.address) as channel:
            stub = scan_service_pb2_grpc.ScanServiceStub(channel)

            async def check(path: str, seconds: float) -> list[int]:
                asked = scan_service_pb2.CheckFilesRequest(
                    tree=tree_pb2.Tree(root="roots/test"),
                    files=[scan_service_pb2.KnownFile(path=path)],
                )
                answer = await stub.CheckFiles(asked, wait_for_ready=True, timeout=seconds)
                return [result.verdict for result in answer.results]

            changed = scan_service_pb2.CheckFileResult.VERDICT_CHANGED
            assert await check("a.py", 60) == [changed]
            with pytest.raises(grpc.aio.AioRpcError) as left:
                await check("stuck.py", 1)
            assert left.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert await check("a.py", 60) == [changed]  # one thread waits, others serve
        (pid,) = children_of(service.process.pid)
        began = time.monotonic()
        os.kill(pid, signal.SIGTERM)
        # strace holds the thread that it slows, so the process is seen to end but is not gone.
        while not has_ended(pid):
            assert time.monotonic() - began < DRAIN_SECONDS + STOP_SECONDS, "it waits for the disk"
            await asyncio.sleep(0.01)
    finally:
        service.process.kill()
        service.process.wait()
