"""What all messages of the indexer share, and workspaces, as protobuf."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf import duration_pb2, timestamp_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from lodestone.indexer.v1 import workspace_service_pb2
from lodestone.io.v1 import tree_pb2
from services.indexer.model import Failure, Tree, Workspace

if TYPE_CHECKING:
    from datetime import datetime

    from services.indexer.model import WatchStatus

_WATCH = workspace_service_pb2.WatchStatus.State


def workspace_id_of(name: str) -> str:
    """Returns the id in a workspace's resource name."""
    return name.removeprefix("workspaces/")


def tree_of(message: tree_pb2.Tree) -> Tree:
    """Returns a tree."""
    return Tree(message.root, message.directory)


def workspace_to_proto(workspace: Workspace) -> workspace_service_pb2.Workspace:
    """Returns a workspace's message."""
    name = f"workspaces/{workspace.name}"
    last = workspace.last_run_id
    return workspace_service_pb2.Workspace(
        name=name,
        tree=tree_pb2.Tree(root=workspace.tree.root, directory=workspace.tree.directory),
        display_name=workspace.display_name,
        live=workspace.live,
        active_model=workspace.active_model_name or "",
        create_time=timestamp(workspace.created_at),
        last_index_run=f"{name}/indexRuns/{last}" if last else "",
        watch=None if workspace.watch is None else _watch_to_proto(workspace.watch),
    )


def _watch_to_proto(watch: WatchStatus) -> workspace_service_pb2.WatchStatus:
    seconds = watch.freshness_seconds
    return workspace_service_pb2.WatchStatus(
        state=_WATCH.Value(f"STATE_{watch.state.name}"),
        reconcile_time=timestamp(watch.reconciled_at),
        fresh_time=timestamp(watch.fresh_at),
        freshness=None if seconds is None else duration(seconds),
    )


def failure_to_proto(failure: Failure) -> status_pb2.Status:
    """Returns a failure as a status with its reason."""
    status = status_pb2.Status(code=code_pb2.Code.Value("INTERNAL"), message=failure.message)
    detail = status.details.add()
    detail.Pack(error_details_pb2.ErrorInfo(reason=failure.reason, domain="indexer.lodestone"))
    return status


def duration(seconds: float) -> duration_pb2.Duration:
    """Returns seconds as a message."""
    message = duration_pb2.Duration()
    message.FromNanoseconds(int(seconds * 1e9))
    return message


def timestamp(value: datetime | None) -> timestamp_pb2.Timestamp | None:
    """Returns a time as a message."""
    if value is None:
        return None
    message = timestamp_pb2.Timestamp()
    message.FromDatetime(value)
    return message
