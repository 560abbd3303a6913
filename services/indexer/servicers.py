"""The indexer's methods: protobuf in, the domain's calls, protobuf out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

from lodestone.indexer.v1 import (
    index_run_service_pb2,
    index_run_service_pb2_grpc,
    workspace_service_pb2,
    workspace_service_pb2_grpc,
)
from services.indexer import convert, convert_runs
from services.indexer.pages import make_token, page_size, read_token
from services.indexer.transitions import FINISHED_RUN_STATES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from services.indexer.dispatcher import Dispatcher
    from services.indexer.ledger import RunLedger
    from services.indexer.run import Run
    from services.indexer.signals import RunSignals
    from services.indexer.storage.workspaces import WorkspaceStore

_NEWEST = (1 << 62) - 1
_POLL_SECONDS = 1.0
_HEARTBEAT_POLLS = 10
_DEFAULT_HITS = 10


class WorkspaceServicer(workspace_service_pb2_grpc.WorkspaceServiceServicer):
    """Source trees that are kept indexed."""

    def __init__(self, workspaces: WorkspaceStore, on_live: Callable[[], None]) -> None:
        self._workspaces = workspaces
        self._on_live = on_live

    async def CreateWorkspace(
        self, request: workspace_service_pb2.CreateWorkspaceRequest, context: Any
    ) -> workspace_service_pb2.CreateWorkspaceResponse:
        workspace, created = await self._workspaces.create(
            request.workspace_id,
            convert.tree_of(request.workspace.tree),
            request.workspace.display_name,
            live=request.workspace.live,
        )
        if created and request.workspace.live:
            self._on_live()
        return workspace_service_pb2.CreateWorkspaceResponse(
            workspace=convert.workspace_to_proto(workspace), created=created
        )

    async def GetWorkspace(
        self, request: workspace_service_pb2.GetWorkspaceRequest, context: Any
    ) -> workspace_service_pb2.GetWorkspaceResponse:
        workspace = await self._workspaces.get(convert.workspace_id_of(request.name))
        return workspace_service_pb2.GetWorkspaceResponse(
            workspace=convert.workspace_to_proto(workspace)
        )

    async def ListWorkspaces(
        self, request: workspace_service_pb2.ListWorkspacesRequest, context: Any
    ) -> workspace_service_pb2.ListWorkspacesResponse:
        size = page_size(request.page_size)
        after = read_token(request.page_token, "workspaces", start="")
        page = await self._workspaces.page(after, size)
        token = make_token(page[-1].name, "workspaces") if len(page) == size else ""
        return workspace_service_pb2.ListWorkspacesResponse(
            workspaces=[convert.workspace_to_proto(item) for item in page], next_page_token=token
        )

    async def UpdateWorkspace(
        self, request: workspace_service_pb2.UpdateWorkspaceRequest, context: Any
    ) -> workspace_service_pb2.UpdateWorkspaceResponse:
        workspace = await self._workspaces.update(
            convert.workspace_id_of(request.name),
            live=request.live if request.HasField("live") else None,
            display_name=request.display_name if request.HasField("display_name") else None,
        )
        if request.HasField("live"):
            self._on_live()
        return workspace_service_pb2.UpdateWorkspaceResponse(
            workspace=convert.workspace_to_proto(workspace)
        )

    async def DeleteWorkspace(
        self, request: workspace_service_pb2.DeleteWorkspaceRequest, context: Any
    ) -> workspace_service_pb2.DeleteWorkspaceResponse:
        await self._workspaces.delete(convert.workspace_id_of(request.name))
        return workspace_service_pb2.DeleteWorkspaceResponse()

    async def GetWorkspaceStats(
        self, request: workspace_service_pb2.GetWorkspaceStatsRequest, context: Any
    ) -> workspace_service_pb2.GetWorkspaceStatsResponse:
        workspace = await self._workspaces.get(convert.workspace_id_of(request.name))
        files, nodes = await self._workspaces.count_nodes(workspace.id)
        return workspace_service_pb2.GetWorkspaceStatsResponse(
            files=files,
            nodes_pending=nodes.get("pending", 0),
            nodes_processing=nodes.get("processing", 0),
            nodes_embedded=nodes.get("embedded", 0),
            nodes_failed=nodes.get("failed", 0),
        )


class IndexRunServicer(index_run_service_pb2_grpc.IndexRunServiceServicer):
    """Runs: queued here, worked on by whichever replica takes them."""

    def __init__(
        self,
        workspaces: WorkspaceStore,
        ledger: RunLedger,
        signals: RunSignals,
        dispatcher: Dispatcher,
    ) -> None:
        self._workspaces = workspaces
        self._ledger = ledger
        self._signals = signals
        self._dispatcher = dispatcher

    async def CreateIndexRun(
        self, request: index_run_service_pb2.CreateIndexRunRequest, context: Any
    ) -> index_run_service_pb2.CreateIndexRunResponse:
        workspace = await self._workspaces.get(convert.workspace_id_of(request.parent))
        run, created = await self._ledger.create(
            workspace.id,
            UUID(request.request_id),
            convert_runs.spec_of(request),
            convert_runs.if_running_of(request.if_running),
        )
        self._wake()
        return index_run_service_pb2.CreateIndexRunResponse(
            index_run=convert_runs.run_to_proto(run), created=created
        )

    async def RetryIndexRun(
        self, request: index_run_service_pb2.RetryIndexRunRequest, context: Any
    ) -> index_run_service_pb2.RetryIndexRunResponse:
        finished = await self._ledger.get(*convert_runs.run_id_of(request.name))
        run, created = await self._ledger.retry(finished, UUID(request.request_id))
        self._wake()
        return index_run_service_pb2.RetryIndexRunResponse(
            index_run=convert_runs.run_to_proto(run), created=created
        )

    async def GetIndexRun(
        self, request: index_run_service_pb2.GetIndexRunRequest, context: Any
    ) -> index_run_service_pb2.GetIndexRunResponse:
        run = await self._ledger.get(*convert_runs.run_id_of(request.name))
        return index_run_service_pb2.GetIndexRunResponse(index_run=convert_runs.run_to_proto(run))

    async def ListIndexRuns(
        self, request: index_run_service_pb2.ListIndexRunsRequest, context: Any
    ) -> index_run_service_pb2.ListIndexRunsResponse:
        parent = convert.workspace_id_of(request.parent)
        workspace = None if parent == "-" else await self._workspaces.get(parent)
        size = page_size(request.page_size)
        before = read_token(request.page_token, request.parent, start=_NEWEST)
        page = await self._ledger.page(workspace.id if workspace else None, before, size)
        token = make_token(page[-1].seq, request.parent) if len(page) == size else ""
        return index_run_service_pb2.ListIndexRunsResponse(
            index_runs=[convert_runs.run_to_proto(run) for run in page], next_page_token=token
        )

    async def ListIndexRunOutcomes(
        self, request: index_run_service_pb2.ListIndexRunOutcomesRequest, context: Any
    ) -> index_run_service_pb2.ListIndexRunOutcomesResponse:
        run = await self._ledger.get(*convert_runs.run_id_of(request.parent))
        results = convert_runs.results_of(list(request.results))
        size = page_size(request.page_size)
        key = (request.parent, results)
        after = read_token(request.page_token, *key, start=["", "", 0])
        page = await self._ledger.outcomes(run, results, tuple(after), size)
        token = ""
        if len(page) == size:
            token = make_token([page[-1].path, page[-1].entity, page[-1].node_id], *key)
        return index_run_service_pb2.ListIndexRunOutcomesResponse(
            outcomes=[convert_runs.outcome_to_proto(item) for item in page], next_page_token=token
        )

    async def PauseIndexRun(
        self, request: index_run_service_pb2.PauseIndexRunRequest, context: Any
    ) -> index_run_service_pb2.PauseIndexRunResponse:
        run = await self._ask(request.name, self._ledger.request_pause)
        return index_run_service_pb2.PauseIndexRunResponse(index_run=convert_runs.run_to_proto(run))

    async def ResumeIndexRun(
        self, request: index_run_service_pb2.ResumeIndexRunRequest, context: Any
    ) -> index_run_service_pb2.ResumeIndexRunResponse:
        run = await self._ask(request.name, self._ledger.request_resume)
        return index_run_service_pb2.ResumeIndexRunResponse(
            index_run=convert_runs.run_to_proto(run)
        )

    async def CancelIndexRun(
        self, request: index_run_service_pb2.CancelIndexRunRequest, context: Any
    ) -> index_run_service_pb2.CancelIndexRunResponse:
        run = await self._ask(request.name, self._ledger.request_cancel)
        return index_run_service_pb2.CancelIndexRunResponse(
            index_run=convert_runs.run_to_proto(run)
        )

    async def _ask(self, name: str, ask: Callable[[Run], Awaitable[None]]) -> Run:
        """Asks something of a run; returns it as it is then, known to whoever works on it here."""
        workspace_name, run_id = convert_runs.run_id_of(name)
        await ask(await self._ledger.get(workspace_name, run_id))
        run = await self._ledger.get(workspace_name, run_id)
        self._dispatcher.tell(run_id, run.state)
        self._signals.notify(run_id)
        self._wake()
        return run

    def _wake(self) -> None:
        """Lets this process look at once; others do within their poll and their beat."""
        self._signals.notify_queued()
        self._dispatcher.look_again()

    async def WatchIndexRun(
        self, request: index_run_service_pb2.WatchIndexRunRequest, context: Any
    ) -> AsyncIterator[index_run_service_pb2.WatchIndexRunResponse]:
        workspace_name, run_id = convert_runs.run_id_of(request.name)
        version = int(read_token(request.resume_token, request.name, start=0))
        quiet_polls = 0
        with self._signals.subscribe(run_id) as changes:
            while True:
                run = await self._ledger.get(workspace_name, run_id)
                quiet_polls += 1
                if run.version != version:
                    version, quiet_polls = run.version, 0
                    yield index_run_service_pb2.WatchIndexRunResponse(
                        index_run=convert_runs.run_to_proto(run),
                        resume_token=make_token(version, request.name),
                    )
                elif quiet_polls >= _HEARTBEAT_POLLS:
                    quiet_polls = 0
                    yield index_run_service_pb2.WatchIndexRunResponse(
                        resume_token=make_token(version, request.name)
                    )
                if run.state in FINISHED_RUN_STATES:
                    return
                await changes.wait(_POLL_SECONDS)
