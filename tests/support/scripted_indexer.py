"""A gRPC server that plays an indexer by a script: for ends that a real one reaches by accident."""

from __future__ import annotations

import os
import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

import grpc
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from lodestone.indexer.v1 import index_run_service_pb2 as runs_pb2
from lodestone.indexer.v1 import index_run_service_pb2_grpc as runs_grpc
from lodestone.indexer.v1 import workspace_service_pb2 as workspaces_pb2
from lodestone.indexer.v1 import workspace_service_pb2_grpc as workspaces_grpc
from services.cli.processes import identify
from services.cli.state import SERVICES, ProcessState, StackState

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from google.protobuf.message import Message

RUN = "workspaces/tree-1234/indexRuns/one"
State = runs_pb2.IndexRun.State


def run_in(state: State.ValueType, name: str = RUN) -> runs_pb2.IndexRun:
    """Returns a run in a state."""
    return runs_pb2.IndexRun(name=name, state=state)


@dataclass
class Script:
    """What the server answers; a watch plays one of `watches` and is then over."""

    watches: queue.SimpleQueue[list[State.ValueType | grpc.StatusCode]] = field(
        default_factory=queue.SimpleQueue
    )
    created: list[bool] = field(default_factory=lambda: [True])
    cancelled: threading.Event = field(default_factory=threading.Event)
    may_end: threading.Event = field(default_factory=threading.Event)
    """Whether a run that was cancelled ends; it is set at first."""

    watching: threading.Event = field(default_factory=threading.Event)
    tokens: list[str] = field(default_factory=list)
    runs_made: int = 0

    def __post_init__(self) -> None:
        self.may_end.set()


class _Runs(runs_grpc.IndexRunServiceServicer):
    def __init__(self, script: Script) -> None:
        self._script = script

    def CreateIndexRun(  # noqa: N802 - the contract's name
        self, request: runs_pb2.CreateIndexRunRequest, context: grpc.ServicerContext
    ) -> runs_pb2.CreateIndexRunResponse:
        created = self._script.created[self._script.runs_made]
        self._script.runs_made += 1
        run = run_in(State.STATE_QUEUED)
        return runs_pb2.CreateIndexRunResponse(index_run=run, created=created)

    def WatchIndexRun(  # noqa: N802 - the contract's name
        self, request: runs_pb2.WatchIndexRunRequest, context: grpc.ServicerContext
    ) -> Iterator[runs_pb2.WatchIndexRunResponse]:
        self._script.tokens.append(request.resume_token)
        for number, step in enumerate(self._script.watches.get()):
            if isinstance(step, grpc.StatusCode):
                context.abort(step, "scripted")
            if step == State.STATE_CANCELLED:
                assert self._script.cancelled.wait(10)
                assert self._script.may_end.wait(30)
            yield runs_pb2.WatchIndexRunResponse(index_run=run_in(step), resume_token=f"t{number}")
            self._script.watching.set()

    def CancelIndexRun(  # noqa: N802 - the contract's name
        self, request: runs_pb2.CancelIndexRunRequest, context: grpc.ServicerContext
    ) -> runs_pb2.CancelIndexRunResponse:
        self._script.cancelled.set()
        return runs_pb2.CancelIndexRunResponse(index_run=run_in(State.STATE_CANCELLING))

    def GetIndexRun(  # noqa: N802 - the contract's name
        self, request: runs_pb2.GetIndexRunRequest, context: grpc.ServicerContext
    ) -> runs_pb2.GetIndexRunResponse:
        info = error_details_pb2.ErrorInfo(
            reason="ERROR_REASON_NOT_FOUND", domain="indexer.lodestone"
        )
        abort(context, code_pb2.NOT_FOUND, f"There is no run {request.name}.", info)

    def ListIndexRuns(  # noqa: N802 - the contract's name
        self, request: runs_pb2.ListIndexRunsRequest, context: grpc.ServicerContext
    ) -> runs_pb2.ListIndexRunsResponse:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field="parent", description="must match the pattern"
        )
        wrong = error_details_pb2.BadRequest(field_violations=[violation])
        told = "The request breaks a rule: parent: must match the pattern"  # as services tell it
        abort(context, code_pb2.INVALID_ARGUMENT, told, wrong)


class _Workspaces(workspaces_grpc.WorkspaceServiceServicer):
    def CreateWorkspace(  # noqa: N802 - the contract's name
        self, request: workspaces_pb2.CreateWorkspaceRequest, context: grpc.ServicerContext
    ) -> workspaces_pb2.CreateWorkspaceResponse:
        workspace = workspaces_pb2.Workspace(name=f"workspaces/{request.workspace_id}")
        return workspaces_pb2.CreateWorkspaceResponse(workspace=workspace, created=True)


def abort(context: grpc.ServicerContext, code: int, message: str, detail: Message) -> NoReturn:
    """Ends a call with a rich status."""
    status = status_pb2.Status(code=code, message=message)
    status.details.add().Pack(detail)
    context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError


@contextmanager
def serve(script: Script, folder: Path) -> Iterator[str]:
    """Serves the script on a Unix socket in the folder, and yields its address."""
    address = f"unix:{folder}/indexer.sock"
    server = grpc.server(ThreadPoolExecutor(4))
    # Methods that are left out answer UNIMPLEMENTED, as the generated base has them.
    runs = _Runs(script)
    workspaces = _Workspaces()
    runs_grpc.add_IndexRunServiceServicer_to_server(runs, server)
    workspaces_grpc.add_WorkspaceServiceServicer_to_server(workspaces, server)
    server.add_insecure_port(address)
    server.start()
    try:
        yield address
    finally:
        server.stop(None).wait()


def state_of_all(address: str) -> StackState:
    """Returns a state in which everything runs, as this very process."""
    me = identify(os.getpid())
    assert me is not None
    entry = ProcessState(me, address)
    return StackState(
        dict.fromkeys(SERVICES, entry), run="/", roots="local=/", embedded=False, ready=True
    )
