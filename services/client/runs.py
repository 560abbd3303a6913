"""Runs: begun, watched, and followed to their end."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import TYPE_CHECKING

import grpc

from lodestone.indexer.v1 import index_run_service_pb2 as runs_pb2
from services.client import convert
from services.client.calls import Calls
from services.client.errors import InvalidCallError, UnavailableError, call_error
from services.client.model import Run, RunState

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

_RECONNECT_SECONDS = 0.3
_PATIENCE_SECONDS = 30.0


class RunCalls(Calls):
    """The calls that are about runs."""

    async def start_index(
        self, workspace: str = "", *, paths: Sequence[str] = (), full: bool = False
    ) -> Run:
        """Queues a run that brings the index up to date, and returns at once.

        One that is unfinished is returned instead, unless `paths` are named: that is a run over
        these files, folders or globs alone, which waits behind it.

        Args:
            workspace: what is indexed.
            paths: what is looked at alone.
            full: whether files that seem unchanged are read too.
        """
        if paths and full:
            raise InvalidCallError("A run over some paths is never full.", code="INVALID_ARGUMENT")
        mode = runs_pb2.IndexRun.MODE_FULL if full else runs_pb2.IndexRun.MODE_INCREMENTAL
        request = runs_pb2.CreateIndexRunRequest(
            parent=await self._parent(workspace),
            request_id=str(uuid.uuid4()),
            mode=runs_pb2.IndexRun.MODE_SCOPED if paths else mode,
            if_running=runs_pb2.CreateIndexRunRequest.IF_RUNNING_QUEUE
            if paths
            else runs_pb2.CreateIndexRunRequest.IF_RUNNING_JOIN,
            paths=paths,
        )
        response = await self._call(self._runs.CreateIndexRun, request)
        return convert.run_of(response.index_run)

    async def index(
        self, workspace: str = "", *, paths: Sequence[str] = (), full: bool = False
    ) -> Run:
        """Brings the index up to date, and returns the run when it has ended or is paused."""
        run = await self.start_index(workspace, paths=paths, full=full)
        async for seen in self.watch(run.name):
            run = seen
        return run

    async def run(self, name: str) -> Run:
        """Returns one run."""
        response = await self._call(self._runs.GetIndexRun, runs_pb2.GetIndexRunRequest(name=name))
        return convert.run_of(response.index_run)

    async def watch(self, name: str) -> AsyncGenerator[Run]:
        """Yields a run whenever it changed, until it has ended or is paused.

        Goes on after the service was away, for up to half a minute each time.
        """
        token = ""
        lost_at: float | None = None
        while True:
            try:
                request = runs_pb2.WatchIndexRunRequest(name=name, resume_token=token)
                async for response in self._runs.WatchIndexRun(request):
                    lost_at = None
                    token = response.resume_token
                    if response.HasField("index_run"):
                        run = convert.run_of(response.index_run)
                        yield run
                        if run.state.is_final or run.state is RunState.PAUSED:
                            return
                error = UnavailableError("The watch ended early.", code="UNAVAILABLE")
            except grpc.aio.AioRpcError as failure:
                found = call_error(failure)
                if not isinstance(found, UnavailableError):
                    raise found from None
                error = found
            now = time.monotonic()
            lost_at = lost_at if lost_at is not None else now
            if now - lost_at > _PATIENCE_SECONDS:
                raise error
            await asyncio.sleep(_RECONNECT_SECONDS)
