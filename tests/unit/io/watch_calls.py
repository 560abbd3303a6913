"""Watches of a running service."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc

from lodestone.io.v1 import tree_pb2, watch_service_pb2, watch_service_pb2_grpc
from tests.unit.io.harness import serve
from tests.unit.io.watching import wait_for

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

FILES = {"a.py": "a", "sub/b.py": "b"}
QUICK = {"watch_quiet_seconds": 0.02, "watch_max_wait_seconds": 0.2, "watch_check_seconds": 0.05}
WAIT_SECONDS = 20.0
RESCAN = watch_service_pb2.FileEvent.TYPE_RESCAN


class Watch:
    """An open watch."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        directory: str = "",
        root: str = "roots/test",
        **request: Any,
    ) -> None:
        tree = tree_pb2.Tree(root=root, directory=directory)
        message = watch_service_pb2.WatchTreeRequest(tree=tree, **request)
        stub: Any = watch_service_pb2_grpc.WatchServiceStub(channel)
        self.call: Any = stub.WatchTree(message)
        self.token = request.get("resume_token", "")

    async def next(self) -> list[tuple[int, str]]:
        """Returns the events of the next message."""
        message = await asyncio.wait_for(self.call.read(), WAIT_SECONDS)
        if message is grpc.aio.EOF:
            await self.end()
        self.token = message.resume_token
        return [(event.type, event.path) for event in message.events]

    async def some(self) -> list[tuple[int, str]]:
        """Returns the events of the next message that has any."""
        while not (events := await self.next()):
            pass
        return events

    async def paths(self, path: str) -> list[str]:
        """Returns the paths told until one of them is `path`."""
        told: list[str] = []
        while path not in told:
            told += [told_path for _, told_path in await self.some()]
        return told

    async def end(self) -> None:
        """Raises how the call ended."""
        code = await self.call.code()
        metadata: Any = await self.call.trailing_metadata()
        raise grpc.aio.AioRpcError(code, metadata, metadata, await self.call.details())

    def cancel(self) -> None:
        """Closes the watch."""
        self.call.cancel()


@asynccontextmanager
async def watching(top: Path, folder: Path, **options: Any) -> AsyncIterator[grpc.aio.Channel]:
    async with serve(top, folder / "s", **QUICK | options) as channel:
        yield channel


async def wait_until(condition: Any) -> None:
    await asyncio.to_thread(wait_for, condition)
