"""The io service as a process of its own, with a state folder, and edits of many files."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import urllib.request
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from blake3 import blake3

from lodestone.io.v1 import edit_service_pb2, edit_service_pb2_grpc, snippet_service_pb2, tree_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence


class Service:
    """The io service as a process of its own."""

    command: Sequence[str] = ()
    """What runs it, before Python."""

    def __init__(self, top: Path, folder: Path, **settings: object) -> None:
        self.address = f"unix:{folder / 's'}"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LODESTONE_")} | {
            "LODESTONE_IO_LISTEN": self.address, "LODESTONE_IO_ROOTS": f"test={top}",
            "LODESTONE_IO_STATE_DIR": str(folder / "state"),
            **{f"LODESTONE_IO_{name.upper()}": str(value) for name, value in settings.items()},
        }  # fmt: skip
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*self.command, sys.executable, "-m", "services.io"], env=environment, stderr=log
            )

    def metric(self, series: str) -> float:
        """Returns a number of `/metrics`; the service was told a `metrics_listen` and is up."""
        lines = map(json.loads, self._log.read_text().splitlines())
        (address,) = (line["listen"] for line in lines if line["event"] == "metrics_ready")
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=20) as answer:
            page: str = answer.read().decode()
        (line,) = (line for line in page.splitlines() if line.startswith(f"{series} "))
        return float(line.rpartition(" ")[2])


@asynccontextmanager
async def running(
    top: Path, folder: Path, **settings: object
) -> AsyncIterator[tuple[Service, Any]]:
    """Yields the service and a stub of it; settings have no prefix."""
    service = Service(top, folder, **settings)
    try:
        async with grpc.aio.insecure_channel(service.address) as channel:
            yield service, edit_service_pb2_grpc.EditServiceStub(channel)
    finally:
        service.process.kill()
        service.process.wait()


def edits_of(names: list[str]) -> edit_service_pb2.ApplyEditsRequest:
    """Returns edits that make `old` of each file `new`."""
    digest = blake3(b"old").digest()
    return edit_service_pb2.ApplyEditsRequest(
        request_id="7f1f2b9c-2d3c-4a87-9d2f-0a1b2c3d4e5f",
        tree=tree_pb2.Tree(root="roots/test"),
        edits=[
            edit_service_pb2.Edit(
                ref=snippet_service_pb2.SnippetRef(
                    path=name, start_byte=0, end_byte=3, file_digest=digest
                ),
                replacement=b"new",
            )
            for name in names
        ],
    )


async def answer_of(stub: Any, asked: edit_service_pb2.ApplyEditsRequest) -> Any:
    """Returns the answer of a server that may be starting."""
    while True:
        try:
            return await stub.ApplyEdits(asked, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            await asyncio.sleep(0.01)


def children_of(pid: int) -> list[int]:
    """Returns the processes that a process started, those of its threads as well."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        found += map(int, path.read_text().split())
    return found


def new_files(top: Path, names: list[str]) -> int:
    """Returns how many files were edited."""
    return sum((top / name).read_text() == "new" for name in names)
