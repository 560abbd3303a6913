"""All three services in one process over Unix sockets, with a real PostgreSQL behind them."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc

from lodestone.indexer.v1 import (
    index_run_service_pb2 as runs_pb2,
)
from lodestone.indexer.v1 import (
    index_run_service_pb2_grpc as runs_grpc,
)
from lodestone.indexer.v1 import (
    search_service_pb2 as search_pb2,
)
from lodestone.indexer.v1 import (
    search_service_pb2_grpc as search_grpc,
)
from lodestone.indexer.v1 import (
    workspace_service_pb2 as workspaces_pb2,
)
from lodestone.indexer.v1 import (
    workspace_service_pb2_grpc as workspaces_grpc,
)
from lodestone.io.v1 import tree_pb2
from services.embed.app import EmbedApp
from services.embed.settings import EmbedSettings
from services.indexer.app import IndexerApp
from services.indexer.settings import IndexerSettings
from services.io.app import IoApp
from services.io.settings import IoSettings
from services.runtime.channel import connect
from services.runtime.server import ServiceRun

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from pathlib import Path

    from services.runtime.server import App
    from services.runtime.settings import ServiceSettings

State = runs_pb2.IndexRun.State
Mode = runs_pb2.IndexRun.Mode
FINISHED = {
    State.STATE_CANCELLED,
    State.STATE_SUCCEEDED,
    State.STATE_SUCCEEDED_WITH_WARNINGS,
    State.STATE_FAILED,
    State.STATE_STALE,
}


class Service:
    """One service that can be stopped and started again on the same socket."""

    def __init__(self, settings: ServiceSettings, make: Callable[[], App]) -> None:
        self._settings = settings
        self._make = make
        self._run: ServiceRun | None = None
        self._task: asyncio.Task[int] | None = None

    async def start(self) -> None:
        """Returns once the service serves."""
        self._run = ServiceRun(self._settings, self._make())
        self._task = asyncio.create_task(self._run.serve())
        while not self._run.serving:
            if self._task.done():
                self._task.result()
            await asyncio.sleep(0.002)

    async def stop(self) -> None:
        """Stops the service in its orderly way; does nothing when it does not run."""
        if self._run is not None and self._task is not None:
            self._run.stop()
            await self._task
        self._run = self._task = None


@dataclass
class Indexing:
    """The services, and calls to the indexer as a client makes them."""

    folder: Path
    url: str
    io: Service
    embed: Service
    indexer: Service
    channel: grpc.aio.Channel
    roots: Path
    workspaces: set[str] = field(default_factory=set)

    @property
    def runs(self) -> Any:
        """The stub of runs."""
        return runs_grpc.IndexRunServiceStub(self.channel)

    @property
    def searches(self) -> Any:
        """The stub of searches."""
        return search_grpc.SearchServiceStub(self.channel)

    @property
    def trees(self) -> Any:
        """The stub of workspaces."""
        return workspaces_grpc.WorkspaceServiceStub(self.channel)

    async def create(self, workspace: str, directory: str) -> None:
        """Makes a workspace of a folder below the root."""
        await self.trees.CreateWorkspace(
            workspaces_pb2.CreateWorkspaceRequest(
                workspace_id=workspace,
                workspace=workspaces_pb2.Workspace(
                    tree=tree_pb2.Tree(root="roots/trees", directory=directory)
                ),
            )
        )
        self.workspaces.add(workspace)

    async def set_live(self, workspace: str, *, live: bool = True) -> workspaces_pb2.Workspace:
        """Lets a workspace be watched, or ends that."""
        response: workspaces_pb2.UpdateWorkspaceResponse = await self.trees.UpdateWorkspace(
            workspaces_pb2.UpdateWorkspaceRequest(name=f"workspaces/{workspace}", live=live)
        )
        return response.workspace

    async def watch_status(self, workspace: str) -> workspaces_pb2.WatchStatus:
        """Returns how a live workspace is watched."""
        response: workspaces_pb2.GetWorkspaceResponse = await self.trees.GetWorkspace(
            workspaces_pb2.GetWorkspaceRequest(name=f"workspaces/{workspace}")
        )
        return response.workspace.watch

    async def list_runs(self, workspace: str) -> list[runs_pb2.IndexRun]:
        """Returns the newest runs, newest first."""
        response = await self.runs.ListIndexRuns(
            runs_pb2.ListIndexRunsRequest(parent=f"workspaces/{workspace}", page_size=1000)
        )
        return list(response.index_runs)

    async def delete(self, workspace: str) -> None:
        """Deletes a workspace."""
        await self.trees.DeleteWorkspace(
            workspaces_pb2.DeleteWorkspaceRequest(name=f"workspaces/{workspace}")
        )

    async def begin(
        self, workspace: str, mode: Mode.ValueType = Mode.MODE_INCREMENTAL, **fields: Any
    ) -> runs_pb2.IndexRun:
        """Queues a run and returns at once."""
        request = runs_pb2.CreateIndexRunRequest(
            parent=f"workspaces/{workspace}", request_id=str(uuid.uuid4()), mode=mode, **fields
        )
        response: runs_pb2.CreateIndexRunResponse = await self.runs.CreateIndexRun(request)
        return response.index_run

    async def wait(
        self,
        run: runs_pb2.IndexRun,
        until: Callable[[runs_pb2.IndexRun], bool] | None = None,
        timeout_seconds: float = 60.0,
    ) -> runs_pb2.IndexRun:
        """Returns a run once it has ended, or once it is as told; the indexer may come and go."""
        wanted = until or (lambda seen: seen.state in FINISHED)
        async with asyncio.timeout(timeout_seconds):
            while True:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    request = runs_pb2.WatchIndexRunRequest(name=run.name)
                    async for seen in self.runs.WatchIndexRun(request):
                        if seen.HasField("index_run"):
                            found: runs_pb2.IndexRun = seen.index_run
                            if wanted(found):
                                return found
                            assert found.state not in FINISHED, found
                await asyncio.sleep(0.05)

    async def run(
        self, workspace: str, mode: Mode.ValueType = Mode.MODE_INCREMENTAL, **fields: Any
    ) -> runs_pb2.IndexRun:
        """Makes a run and returns it when it has ended."""
        return await self.wait(await self.begin(workspace, mode, **fields))

    async def succeed(self, workspace: str, mode: Mode.ValueType = Mode.MODE_INCREMENTAL) -> Any:
        """Makes a run that must succeed; returns its progress."""
        run = await self.run(workspace, mode)
        assert run.state == State.STATE_SUCCEEDED, run
        return run.progress

    async def search(
        self, workspace: str, query: str, *, k: int = 10, **only: Any
    ) -> list[search_pb2.NodeHit]:
        """Searches with the texts of the hits."""
        response = await self.searches.SearchNodes(
            search_pb2.SearchNodesRequest(
                parent=f"workspaces/{workspace}",
                query=query,
                page_size=k,
                filter=search_pb2.SearchFilter(**only),
                with_text=True,
            )
        )
        return list(response.hits)

    async def outcomes(self, run: runs_pb2.IndexRun) -> list[runs_pb2.Outcome]:
        """Returns all outcomes of a run."""
        return await self._outcomes(run)

    async def failures(self, run: runs_pb2.IndexRun) -> list[runs_pb2.Outcome]:
        """Returns what failed in a run."""
        return await self._outcomes(
            run,
            runs_pb2.Outcome.RESULT_FAILED,
            runs_pb2.Outcome.RESULT_TIMEOUT,
            runs_pb2.Outcome.RESULT_STALE,
        )

    async def _outcomes(
        self, run: runs_pb2.IndexRun, *results: runs_pb2.Outcome.Result.ValueType
    ) -> list[runs_pb2.Outcome]:
        response = await self.runs.ListIndexRunOutcomes(
            runs_pb2.ListIndexRunOutcomesRequest(parent=run.name, page_size=1000, results=results)
        )
        return list(response.outcomes)


@contextlib.asynccontextmanager
async def indexing(
    roots: Path,
    folder: Path,
    url: str,
    *,
    embed: Callable[[EmbedSettings], App] = EmbedApp,
    embed_settings: Mapping[str, Any] | None = None,
    io_settings: Mapping[str, Any] | None = None,
    all_settings: Mapping[str, Any] | None = None,
    **indexer_settings: Any,
) -> AsyncIterator[Indexing]:
    """Starts io, embed with the hashing model, and the indexer; stops them in reverse order.

    The channel shows the token that `all_settings` name, as the indexer does.
    """
    addresses = {name: f"unix:{folder}/{name}" for name in ("io", "embed", "indexer")}
    common = dict(all_settings or {})
    files = IoSettings(
        **{
            "listen": addresses["io"],
            "roots": f"trees={roots}",
            "parse_workers": 1,
            "drain_seconds": 5,
            **common,
            **(io_settings or {}),
        }
    )
    model = EmbedSettings(
        **{"listen": addresses["embed"], "model": "hashing:64", **common, **(embed_settings or {})}
    )
    settings = IndexerSettings(
        **{
            **common,
            "listen": addresses["indexer"],
            "io_address": addresses["io"],
            "embed_address": addresses["embed"],
            "database_url": url,
            "lease_seconds": 1.0,
            "drain_seconds": 5,
            **indexer_settings,
        }
    )
    services = (
        Service(files, lambda: IoApp(files)),
        Service(model, lambda: embed(model)),
        Service(settings, lambda: IndexerApp(settings)),
    )
    try:
        for service in services:
            await service.start()
        token_file = common.get("token_file")
        async with connect(addresses["indexer"], token_file=token_file) as channel:
            yield Indexing(folder, url, *services, channel, roots)
    finally:
        for service in reversed(services):
            await service.stop()


async def until(condition: Callable[[], Any], timeout_seconds: float = 20.0) -> None:
    """Waits until a condition holds; fails when it does not in time."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.005)
