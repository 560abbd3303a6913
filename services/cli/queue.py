"""`lodestone queue`: what waits for the model, what failed, and holds."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
import grpc
from google.protobuf.duration_pb2 import Duration

from lodestone.indexer.v1 import queue_service_pb2 as queue_pb2
from lodestone.indexer.v1.queue_service_pb2_grpc import QueueServiceStub
from services.cli.listing import connect, print_table
from services.cli.rpc_errors import explain
from services.cli.terminal import harmless
from services.cli.trees import check_workspace_id
from services.runtime.exits import ExitCode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_CALL_SECONDS = 30.0
_SLACK_SECONDS = 10.0


def show_status(root: Path, workspace: str, *, as_json: bool) -> ExitCode:
    """Prints counts of nodes, workers and runs."""
    with _queue(root) as queue:
        stats = queue.GetQueueStats(
            queue_pb2.GetQueueStatsRequest(parent=_parent(workspace)), timeout=_CALL_SECONDS
        )
    shown = _stats_json(stats)
    if as_json:
        click.echo(json.dumps(shown))
        return ExitCode.OK
    click.echo("The queue is paused." if stats.paused else "The queue is open.")
    print_table(
        ("kind", "status", "nodes", "oldest", "model"),
        [(c.kind, c.status, f"{c.count:,}", _age(c.oldest_age), c.model) for c in stats.counts],
    )
    for worker in stats.workers:
        stale = f", {worker.stale:,} of them stale" if worker.stale else ""
        click.echo(f"worker {worker.worker}: {worker.processing:,} in flight{stale}")
    for run in stats.runs:
        click.echo(f"runs {run.state}: {run.count:,}, the oldest since {_age(run.oldest_age)}")
    return ExitCode.OK


def hold(root: Path, workspace: str, *, paused: bool, as_json: bool) -> ExitCode:
    """Stops claims, or allows them again."""
    parent = _parent(workspace)
    with _queue(root) as queue:
        if paused:
            queue.PauseQueue(queue_pb2.PauseQueueRequest(parent=parent), timeout=_CALL_SECONDS)
        else:
            queue.ResumeQueue(queue_pb2.ResumeQueueRequest(parent=parent), timeout=_CALL_SECONDS)
    what = workspace or "all workspaces"
    _tell({"paused": paused}, f"{'Paused' if paused else 'Resumed'}: {what}.", as_json=as_json)
    return ExitCode.OK


def show_failed(root: Path, workspace: str, limit: int, *, as_json: bool) -> ExitCode:
    """Prints failed nodes, each with its error."""
    request = queue_pb2.ListFailedNodesRequest(parent=_parent(workspace), page_size=limit)
    with _queue(root) as queue:
        nodes = queue.ListFailedNodes(request, timeout=_CALL_SECONDS).nodes
    if as_json:
        click.echo(json.dumps([_failed_json(node) for node in nodes]))
        return ExitCode.OK
    for node in nodes:
        where = harmless(f"{node.path} {node.qualified_name}".rstrip())
        by = f", {node.model}" if node.model else ""
        click.echo(f"{node.node_id}  {where}: {node.error.message} ({node.attempts} attempts{by})")
    if not nodes:
        click.echo("Nothing failed.")
    return ExitCode.OK


def retry_failed(root: Path, workspace: str, *, as_json: bool) -> ExitCode:
    """Puts failed nodes back."""
    request = queue_pb2.RetryFailedNodesRequest(parent=_parent(workspace))
    with _queue(root) as queue:
        response = queue.RetryFailedNodes(request, timeout=_CALL_SECONDS)
    runs = list(response.index_runs)
    take = "takes" if len(runs) == 1 else "take"
    by = f"; {' and '.join(runs)} {take} them up" if runs else ""
    _tell(
        {"count": response.count, "run": response.index_run, "runs": runs},
        f"{response.count:,} put back{by}.",
        as_json=as_json,
    )
    return ExitCode.OK


def drain(root: Path, workspace: str, timeout: float, *, as_json: bool) -> ExitCode:
    """Waits until nothing is left, or the time is over."""
    wait = Duration()
    wait.FromNanoseconds(int(timeout * 1e9))
    request = queue_pb2.DrainQueueRequest(parent=_parent(workspace), timeout=wait)
    with _queue(root) as queue:
        response = queue.DrainQueue(request, timeout=timeout + _SLACK_SECONDS)
    told = "Nothing is left." if response.drained else f"{response.left:,} nodes are left."
    _tell({"drained": response.drained, "left": response.left}, told, as_json=as_json)
    return ExitCode.OK if response.drained else ExitCode.FAILED


@contextmanager
def _queue(root: Path) -> Iterator[QueueServiceStub]:
    indexer, _ = connect(root)
    try:
        yield QueueServiceStub(indexer.channel)
    except grpc.RpcError as error:
        raise explain(error) from None
    finally:
        indexer.close()


def _parent(workspace: str) -> str:
    return f"workspaces/{check_workspace_id(workspace)}" if workspace else ""


def _tell(shown: dict[str, Any], text: str, *, as_json: bool) -> None:
    click.echo(json.dumps(shown) if as_json else text)


def _stats_json(stats: queue_pb2.GetQueueStatsResponse) -> dict[str, Any]:
    return {
        "paused": stats.paused,
        "stale": stats.stale,
        "nodes": [
            {
                "kind": item.kind,
                "status": item.status,
                "count": item.count,
                "oldest_seconds": _seconds(item.oldest_age),
                "model": item.model,
            }
            for item in stats.counts
        ],
        "workers": [
            {
                "worker": item.worker,
                "processing": item.processing,
                "stale": item.stale,
                "oldest_seconds": _seconds(item.oldest_age),
            }
            for item in stats.workers
        ],
        "runs": {item.state: item.count for item in stats.runs},
    }


def _failed_json(node: queue_pb2.FailedNode) -> dict[str, Any]:
    return {
        "id": node.node_id,
        "path": node.path,
        "name": node.qualified_name,
        "error": node.error.message,
        "attempts": node.attempts,
        "model": node.model,
    }


def _seconds(age: Duration) -> float:
    return round(age.ToNanoseconds() / 1e9, 3)


def _age(age: Duration) -> str:
    seconds = _seconds(age)
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s"
