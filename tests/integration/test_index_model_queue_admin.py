"""The queue of a model beside the active one as an admin sees and holds it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf import duration_pb2
from prometheus_client import REGISTRY

from lodestone.indexer.v1 import queue_service_pb2 as queue_pb2
from lodestone.indexer.v1 import queue_service_pb2_grpc as queue_grpc
from services.indexer.model import Failure
from services.indexer.storage.queue_admin import ALL_WORKSPACES, QueueAdmin
from services.indexer.storage.queue_depth import QueueDepth
from tests.integration.indexing import State
from tests.integration.oracle import broken_rules
from tests.integration.replicas import MODEL, parsed_file, replica, workspace_with_model
from tests.integration.two_models import (
    SMALL,
    TREE,
    add_small,
    maintenance,
    runs_ended,
    two_models,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from services.indexer.model import RegisteredModel, Workspace
    from services.indexer.storage.database import Database
    from tests.integration.hooks import Hook
    from tests.integration.indexing import Indexing
    from tests.integration.replicas import Replica

_NODES = 20
_SECOND = replace(MODEL, name="models/second", fingerprint="a" * 64, dimensions=8)
_FINAL = Failure("ERROR_REASON_INVALID_REQUEST", "no")


@pytest.fixture
async def services(
    roots: Path, sockets: Path, migrated_url: str, hook: Hook
) -> AsyncIterator[Indexing]:
    async with two_models(roots, sockets, migrated_url, hook, _NODES) as running:
        yield running


@pytest.fixture
def queue(services: Indexing) -> Any:
    return queue_grpc.QueueServiceStub(services.channel)


async def test_a_bulk_import_waits_for_a_batch_of_any_model(
    services: Indexing, queue: Any, hook: Hook
) -> None:
    """Red with counts over `nodes` alone: drained, no worker, and a lease beside the batch."""
    hook.hold()
    await add_small(maintenance(services))
    await hook.reached.wait()

    drained = await queue.DrainQueue(
        queue_pb2.DrainQueueRequest(parent=TREE, timeout=duration_pb2.Duration(nanos=10**8))
    )
    stats = await queue.GetQueueStats(queue_pb2.GetQueueStatsRequest(parent=TREE))
    begin = asyncio.ensure_future(
        queue.BeginBulkImport(
            queue_pb2.BeginBulkImportRequest(parent=TREE, lease=duration_pb2.Duration(seconds=60))
        )
    )
    async with asyncio.timeout(10):
        while not (  # noqa: ASYNC110
            await queue.GetQueueStats(queue_pb2.GetQueueStatsRequest(parent=TREE))
        ).paused:
            await asyncio.sleep(0.02)
    assert not begin.done(), "a batch is in flight"
    hook.go_on.set()
    lease = await begin
    during = await queue.GetQueueStats(queue_pb2.GetQueueStatsRequest(parent=TREE))
    calls = len(hook.calls)
    await queue.EndBulkImport(queue_pb2.EndBulkImportRequest(lease_token=lease.lease_token))
    await runs_ended(services)

    assert (drained.drained, drained.left) == (False, _NODES)
    assert {(c.status, c.model): c.count for c in stats.counts} == {
        ("embedded", ""): _NODES,
        ("pending", SMALL): _NODES - 8,
        ("processing", SMALL): 8,
    }
    assert [worker.processing for worker in stats.workers] == [8]
    assert "processing" not in {count.status for count in during.counts}
    assert len(hook.calls) > calls, "the queue of the model resumed"
    assert (await queue.DrainQueue(queue_pb2.DrainQueueRequest(parent=TREE))).drained
    assert await broken_rules(services.url) == []


async def test_what_failed_with_any_model_is_listed_and_put_back(
    services: Indexing, queue: Any, hook: Hook
) -> None:
    """Red with a list or a retry that reads `nodes` alone."""
    hook.poison = "value + 13\n"
    await add_small(maintenance(services))
    await runs_ended(services)
    hook.poison = ""

    listed = await queue.ListFailedNodes(queue_pb2.ListFailedNodesRequest(parent=TREE))
    retried = await queue.RetryFailedNodes(queue_pb2.RetryFailedNodesRequest(parent=TREE))
    (name,) = retried.index_runs
    (run,) = [run for run in await services.list_runs("tree") if run.name == name]
    ended = await services.wait(run)
    again = await queue.RetryFailedNodes(queue_pb2.RetryFailedNodesRequest(parent=TREE))

    assert [(node.qualified_name, node.model) for node in listed.nodes] == [("work_13", SMALL)]
    assert listed.nodes[0].error.message
    assert (retried.count, retried.index_run, ended.model) == (1, name, SMALL)
    assert (ended.state, ended.progress.nodes_embedded) == (State.STATE_SUCCEEDED, 1)
    assert (again.count, list(again.index_runs)) == (0, [])
    assert await broken_rules(services.url) == []


async def _failed_with_both(stores: Replica) -> tuple[Workspace, RegisteredModel]:
    """Returns a workspace whose nodes a and b failed with both models, and c with the second."""
    workspace, first = await workspace_with_model(stores)
    await stores.queue(workspace)
    run = await stores.take()
    await stores.apply(run, first, parsed_file("a.py", "a", "b", "c"))
    a, b, c = await stores.nodes.claim(run, 9)
    await stores.nodes.fail(run, {a.id: _FINAL, b.id: _FINAL}, [a, b], "embed", 1)
    await stores.complete(run, first, [c])
    await stores.ledger.finish(run, None)
    second = await stores.workspaces.register_model(_SECOND)
    await stores.models.add(workspace, second)
    beside = await stores.take()
    claimed = await stores.model_nodes.claim(beside, 9)
    failures = {node.id: _FINAL for node in claimed}
    await stores.model_nodes.fail(beside, failures, claimed, "embed", 1)
    await stores.ledger.finish(beside, None)
    return workspace, second


@pytest.mark.parametrize("size", [1, 2, 9])
async def test_pages_of_failed_nodes_pass_over_none(database: Database, size: int) -> None:
    """Red with a page that begins after a node's id alone."""
    stores = replica(database)
    workspace, second = await _failed_with_both(stores)
    admin = QueueAdmin(database)
    found, after = [], (0, 0)

    while page := await admin.failed(workspace.id, after, size):
        found += [(node.qualified_name, node.model_name) for node in page]
        after = page[-1].id, page[-1].model_id or 0

    name = second.name
    assert found == [("a", ""), ("a", name), ("b", ""), ("b", name), ("c", name)]
    retried = await admin.retry_failed(workspace.id, stores.ledger)
    assert {model: item.count for model, item in retried.items()} == {None: 2, second.id: 3}
    assert await admin.count_left(ALL_WORKSPACES) == 5


async def test_gauges_count_both_queues(database: Database) -> None:
    """Red with a look at `nodes` alone: 2 failed."""
    stores = replica(database)
    await _failed_with_both(stores)
    await stores.value(
        "UPDATE model_nodes SET status_since = now() - interval '90 s' RETURNING node_id"
    )

    await QueueDepth(database).look()

    def gauge(name: str) -> float:
        sample = REGISTRY.get_sample_value(f"lodestone_indexer_{name}", {"status": "failed"})
        return sample or 0.0

    assert gauge("queue_nodes") == 5
    assert 90 <= gauge("queue_oldest_seconds") < 100
