"""The calls to the indexer that commands make."""

from __future__ import annotations

import contextlib
import uuid
from typing import TYPE_CHECKING

import grpc

from lodestone.indexer.v1 import (
    index_run_service_pb2 as runs_pb2,
)
from lodestone.indexer.v1 import (
    workspace_service_pb2 as workspaces_pb2,
)
from lodestone.indexer.v1.index_run_service_pb2_grpc import IndexRunServiceStub
from lodestone.indexer.v1.workspace_service_pb2_grpc import WorkspaceServiceStub
from services.cli.channels import open_channel
from services.cli.rpc_errors import explain

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lodestone.indexer.v1.search_service_pb2 import (
        BuildContextRequest,
        BuildContextResponse,
        SearchNodesRequest,
        SearchNodesResponse,
    )
    from services.cli.trees import SourceTree

_CALL_SECONDS = 30.0
_PAGE_SIZE = 1000
_FAILURES = (
    runs_pb2.Outcome.RESULT_FAILED,
    runs_pb2.Outcome.RESULT_TIMEOUT,
    runs_pb2.Outcome.RESULT_STALE,
)


class Indexer:
    """A client of one indexer; errors of calls are StartErrors with one clear line."""

    def __init__(
        self, address: str, *, call_seconds: float = _CALL_SECONDS, tls_name: str = ""
    ) -> None:
        self._seconds = call_seconds
        self._channel = open_channel(address, tls_name=tls_name)
        self._runs = IndexRunServiceStub(self._channel)
        self._workspaces = WorkspaceServiceStub(self._channel)

    @property
    def channel(self) -> grpc.Channel:
        """The channel, for other services of the indexer."""
        return self._channel

    def close(self) -> None:
        """Ends all calls."""
        self._channel.close()

    def create_workspace(self, identifier: str, tree: SourceTree) -> workspaces_pb2.Workspace:
        """Returns the workspace of a tree; makes it when there is none."""
        request = workspaces_pb2.CreateWorkspaceRequest(workspace_id=identifier)
        request.workspace.tree.root = tree.root
        request.workspace.tree.directory = tree.directory
        request.workspace.display_name = tree.display_name
        with _explained():
            response = self._workspaces.CreateWorkspace(
                request, timeout=self._seconds, wait_for_ready=True
            )
        return response.workspace

    def set_live(self, workspace: str, *, live: bool) -> workspaces_pb2.Workspace:
        """Lets a workspace be watched, or ends that; returns it."""
        request = workspaces_pb2.UpdateWorkspaceRequest(name=workspace, live=live)
        with _explained():
            return self._workspaces.UpdateWorkspace(request, timeout=self._seconds).workspace

    def list_workspaces(self) -> list[workspaces_pb2.Workspace]:
        """Returns all workspaces by name."""
        found: list[workspaces_pb2.Workspace] = []
        token = ""
        while True:
            request = workspaces_pb2.ListWorkspacesRequest(page_size=_PAGE_SIZE, page_token=token)
            with _explained():
                page = self._workspaces.ListWorkspaces(request, timeout=self._seconds)
            found.extend(page.workspaces)
            token = page.next_page_token
            if not token:
                return found

    def get_workspace(self, name: str) -> workspaces_pb2.Workspace:
        """Returns one workspace."""
        request = workspaces_pb2.GetWorkspaceRequest(name=name)
        with _explained():
            return self._workspaces.GetWorkspace(request, timeout=self._seconds).workspace

    def stats(self, workspace: str) -> workspaces_pb2.GetWorkspaceStatsResponse:
        """Returns what the tables hold of a workspace."""
        request = workspaces_pb2.GetWorkspaceStatsRequest(name=workspace)
        with _explained():
            return self._workspaces.GetWorkspaceStats(request, timeout=self._seconds)

    def create_run(
        self, workspace: str, *, full: bool, exclude: Sequence[str], only: Sequence[str] = ()
    ) -> tuple[runs_pb2.IndexRun, bool]:
        """Queues a run, or returns one that covers it and is not finished; and whether it is new.

        One over named paths alone waits for no other to be joined: it is queued behind it.
        """
        mode = runs_pb2.IndexRun.MODE_FULL if full else runs_pb2.IndexRun.MODE_INCREMENTAL
        if_running = runs_pb2.CreateIndexRunRequest.IF_RUNNING_JOIN
        if only:
            mode = runs_pb2.IndexRun.MODE_SCOPED
            if_running = runs_pb2.CreateIndexRunRequest.IF_RUNNING_QUEUE
        request = runs_pb2.CreateIndexRunRequest(
            parent=workspace,
            request_id=str(uuid.uuid4()),
            mode=mode,
            if_running=if_running,
            exclude=exclude,
            paths=only,
        )
        with _explained():
            response = self._runs.CreateIndexRun(request, timeout=self._seconds)
        return response.index_run, response.created

    def create_repair(self, workspace: str) -> runs_pb2.IndexRun:
        """Queues a run over what a check marked."""
        request = runs_pb2.CreateIndexRunRequest(
            parent=workspace,
            request_id=str(uuid.uuid4()),
            mode=runs_pb2.IndexRun.MODE_REPAIR,
            if_running=runs_pb2.CreateIndexRunRequest.IF_RUNNING_QUEUE,
        )
        with _explained():
            return self._runs.CreateIndexRun(request, timeout=self._seconds).index_run

    def watch_run(self, name: str, resume_token: str) -> Iterator[runs_pb2.WatchIndexRunResponse]:
        """Streams a run until it is finished; iterating raises RpcError."""
        request = runs_pb2.WatchIndexRunRequest(name=name, resume_token=resume_token)
        return self._runs.WatchIndexRun(request)

    def get_run(self, name: str) -> runs_pb2.IndexRun:
        """Returns one run."""
        with _explained():
            response = self._runs.GetIndexRun(
                runs_pb2.GetIndexRunRequest(name=name), timeout=self._seconds
            )
        return response.index_run

    def cancel_run(self, name: str) -> None:
        """Asks a run to stop."""
        with _explained():
            self._runs.CancelIndexRun(
                runs_pb2.CancelIndexRunRequest(name=name), timeout=self._seconds
            )

    def pause_run(self, name: str) -> runs_pb2.IndexRun:
        """Asks a run to pause; returns it."""
        request = runs_pb2.PauseIndexRunRequest(name=name)
        with _explained():
            return self._runs.PauseIndexRun(request, timeout=self._seconds).index_run

    def resume_run(self, name: str) -> runs_pb2.IndexRun:
        """Puts a paused run back in the queue; returns it."""
        request = runs_pb2.ResumeIndexRunRequest(name=name)
        with _explained():
            return self._runs.ResumeIndexRun(request, timeout=self._seconds).index_run

    def retry_run(self, name: str) -> runs_pb2.IndexRun:
        """Queues a run over what is left of a finished one; returns the new one."""
        request = runs_pb2.RetryIndexRunRequest(name=name, request_id=str(uuid.uuid4()))
        with _explained():
            return self._runs.RetryIndexRun(request, timeout=self._seconds).index_run

    def list_runs(self, workspace: str, limit: int) -> list[runs_pb2.IndexRun]:
        """Returns the newest runs; `workspaces/-` means those of all workspaces."""
        request = runs_pb2.ListIndexRunsRequest(parent=workspace, page_size=limit)
        with _explained():
            return list(self._runs.ListIndexRuns(request, timeout=self._seconds).index_runs)

    def each_run(self, workspace: str, page_size: int) -> Iterator[runs_pb2.IndexRun]:
        """Yields runs, newest first; a page is asked for when it is needed."""
        token = ""
        while True:
            request = runs_pb2.ListIndexRunsRequest(
                parent=workspace, page_size=page_size, page_token=token
            )
            with _explained():
                page = self._runs.ListIndexRuns(request, timeout=self._seconds)
            yield from page.index_runs
            token = page.next_page_token
            if not token:
                return

    def failures(self, run: str, limit: int) -> list[runs_pb2.Outcome]:
        """Returns what failed in a run, in path order."""
        return self.outcomes(run, limit, _FAILURES)

    def outcomes(
        self, run: str, limit: int, results: Sequence[runs_pb2.Outcome.Result.ValueType] = ()
    ) -> list[runs_pb2.Outcome]:
        """Returns how files and nodes ended in a run, in path order."""
        found: list[runs_pb2.Outcome] = []
        token = ""
        while len(found) < limit:
            request = runs_pb2.ListIndexRunOutcomesRequest(
                parent=run,
                page_size=min(_PAGE_SIZE, limit - len(found)),
                page_token=token,
                results=results,
            )
            with _explained():
                page = self._runs.ListIndexRunOutcomes(request, timeout=self._seconds)
            found.extend(page.outcomes)
            token = page.next_page_token
            if not token:
                break
        return found

    def search(self, request: SearchNodesRequest) -> SearchNodesResponse:
        """Returns what a search found."""
        from lodestone.indexer.v1.search_service_pb2_grpc import SearchServiceStub
        from services.cli.reranking import tell_reranking

        with _explained():
            response: SearchNodesResponse = SearchServiceStub(self._channel).SearchNodes(
                request, timeout=self._seconds
            )
        tell_reranking(response.reranking)
        return response

    def build_context(self, request: BuildContextRequest) -> BuildContextResponse:
        """Returns a context."""
        from lodestone.indexer.v1.search_service_pb2_grpc import SearchServiceStub

        with _explained():
            return SearchServiceStub(self._channel).BuildContext(request, timeout=self._seconds)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raise explain(error) from None
