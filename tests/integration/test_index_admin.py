"""The queue as an admin sees and holds it."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf import duration_pb2

from lodestone.indexer.v1 import index_run_service_pb2 as runs_pb2
from lodestone.indexer.v1 import queue_service_pb2 as queue_pb2
from lodestone.indexer.v1 import queue_service_pb2_grpc as queue_grpc
from services.indexer.errors import LeaseLostError
from services.indexer.storage.queue_admin import ALL_WORKSPACES, QueueAdmin
from services.runtime.errors import StateConflictError
from tests.integration.indexing import State, indexing
from tests.integration.oracle import broken_rules, check
from tests.integration.replicas import parsed_file, workspace_with_model
from tests.integration.samples import write_many

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from services.indexer.run import Run
    from services.indexer.storage.database import Database
    from tests.integration.hooks import Hook
    from tests.integration.indexing import Indexing
    from tests.integration.replicas import Replica

_TREE = "workspaces/tree"


@pytest.fixture
async def services(
    roots: Path, sockets: Path, migrated_url: str, hook: Hook
) -> AsyncIterator[Indexing]:
    write_many(roots / "tree", 40, per_file=5)
    async with indexing(
        roots, sockets, migrated_url, embed=hook.app, embed_batch_nodes=8, embed_batches_in_flight=1
    ) as running:
        await running.create("tree", "tree")
        yield running
        hook.go_on.set()


@pytest.fixture
def queue(services: Indexing) -> Any:
    return queue_grpc.QueueServiceStub(services.channel)


@pytest.fixture
def admin(database: Database) -> QueueAdmin:
    return QueueAdmin(database)


def _seconds(value: float) -> duration_pb2.Duration:
    message = duration_pb2.Duration()
    message.FromNanoseconds(int(value * 1e9))
    return message


@pytest.mark.parametrize("parent", [_TREE, ""])
async def test_a_paused_queue_plans_and_embeds_nothing(
    services: Indexing, queue: Any, hook: Hook, parent: str
) -> None:
    """Red with a claim that does not look at holds."""
    await queue.PauseQueue(queue_pb2.PauseQueueRequest(parent=parent))
    run = await services.begin("tree")

    planned = await services.wait(run, lambda seen: seen.progress.nodes_total_final)
    drained = await queue.DrainQueue(
        queue_pb2.DrainQueueRequest(parent=_TREE, timeout=_seconds(0.3))
    )
    stats = await queue.GetQueueStats(queue_pb2.GetQueueStatsRequest(parent=_TREE))

    assert planned.state == State.STATE_RUNNING
    assert (drained.drained, drained.left) == (False, 40)
    assert stats.paused
    assert {(c.kind, c.status, c.count) for c in stats.counts} == {("function", "pending", 40)}
    assert stats.counts[0].oldest_age.ToNanoseconds() > 0
    assert [(c.state, c.count) for c in stats.runs] == [("running", 1)]
    assert hook.calls == []
    await queue.ResumeQueue(queue_pb2.ResumeQueueRequest(parent=parent))
    assert (await services.wait(run)).state == State.STATE_SUCCEEDED
    assert (await queue.DrainQueue(queue_pb2.DrainQueueRequest(parent=_TREE))).drained
    await check(services, "tree", "tree")


async def test_a_workspace_stays_paused_while_all_are(one: Replica, admin: QueueAdmin) -> None:
    run = await _running(one)
    await admin.pause(ALL_WORKSPACES)
    await admin.pause(run.workspace_id)
    await admin.pause(run.workspace_id)

    await admin.resume(run.workspace_id)
    assert await one.nodes.claim(run, 9) == []
    await admin.resume(ALL_WORKSPACES)

    assert len(await one.nodes.claim(run, 9)) == 2


async def test_a_hold_waits_for_claims_that_do_not_know_of_it(
    one: Replica, admin: QueueAdmin
) -> None:
    """Red when an import begins beside a claim that began before: it committed afterwards."""
    run = await _running(one)
    async with one.database.transaction() as connection:
        await connection.execute("SELECT 1 FROM runs WHERE id = $1 FOR SHARE", run.id)
        begin = asyncio.create_task(admin.begin_import(run.workspace_id, 60))
        async with asyncio.timeout(10):
            while not await one.value("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                assert not begin.done()
    await begin


async def test_workers_are_counted_with_what_they_left(one: Replica, admin: QueueAdmin) -> None:
    run = await _running(one)
    await one.nodes.claim(run, 1)
    fresh = await admin.stats(run.workspace_id)
    await one.value(
        "UPDATE nodes SET lease_until = now() - interval '1 s' WHERE lease_owner <> $1",
        uuid.uuid4(),
    )

    stale = await admin.stats(ALL_WORKSPACES)

    (worker,) = fresh.workers
    assert (worker.count, worker.stale) == (1, 0)
    assert worker.oldest_seconds >= 0
    assert [(item.count, item.stale) for item in stale.workers] == [(1, 1)]
    assert {item.name: item.count for item in fresh.nodes} == {
        ("function", "pending", ""): 1,
        ("function", "processing", ""): 1,
    }


async def test_failed_nodes_are_listed_with_their_error_and_put_back(
    services: Indexing, queue: Any, hook: Hook
) -> None:
    hook.poison = "value + 33\n"
    await services.run("tree")
    hook.poison = ""

    listed = await queue.ListFailedNodes(queue_pb2.ListFailedNodesRequest(parent=_TREE))
    retried = await queue.RetryFailedNodes(queue_pb2.RetryFailedNodesRequest(parent=_TREE))
    run = await services.wait(runs_pb2.IndexRun(name=retried.index_run))
    again = await queue.RetryFailedNodes(queue_pb2.RetryFailedNodesRequest(parent=_TREE))

    (node,) = listed.nodes
    assert (node.qualified_name, node.path) == ("work_33", "part_000030.py")
    assert node.error.message
    assert node.attempts >= 1
    assert retried.count == 1
    assert (run.state, run.progress.nodes_embedded) == (State.STATE_SUCCEEDED, 1)
    assert (again.count, again.index_run) == (0, "")
    await check(services, "tree", "tree")


async def test_a_bulk_import_waits_for_what_is_in_flight_and_holds_the_rest(
    services: Indexing, queue: Any, hook: Hook
) -> None:
    hook.hold()
    run = await services.begin("tree")
    await hook.reached.wait()
    begin = asyncio.create_task(
        _call(
            queue.BeginBulkImport,
            queue_pb2.BeginBulkImportRequest(parent=_TREE, lease=_seconds(60)),
        )
    )
    await _until_held(queue)
    assert not begin.done(), "a batch is in flight"
    hook.go_on.set()

    lease = await begin
    embedded = len(hook.texts)
    stats = await queue.GetQueueStats(queue_pb2.GetQueueStatsRequest(parent=_TREE))
    with pytest.raises(grpc.aio.AioRpcError) as second:
        await queue.BeginBulkImport(
            queue_pb2.BeginBulkImportRequest(parent=_TREE, lease=_seconds(60))
        )
    await queue.RenewBulkImport(queue_pb2.RenewBulkImportRequest(lease_token=lease.lease_token))
    assert len(hook.texts) == embedded == 8
    await queue.EndBulkImport(queue_pb2.EndBulkImportRequest(lease_token=lease.lease_token))

    assert second.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert stats.paused
    assert stats.bulk_import_end_time == lease.expire_time
    assert "processing" not in {count.status for count in stats.counts}
    assert (await services.wait(run)).state == State.STATE_SUCCEEDED
    assert await broken_rules(services.url) == []


async def test_the_queue_resumes_by_itself_when_an_importer_dies(
    services: Indexing, queue: Any
) -> None:
    """Red when a claim does not compare the lease with the database's clock."""
    lease = await queue.BeginBulkImport(
        queue_pb2.BeginBulkImportRequest(parent=_TREE, lease=_seconds(1))
    )

    run = await services.run("tree")

    assert run.state == State.STATE_SUCCEEDED
    assert run.end_time.ToNanoseconds() > lease.expire_time.ToNanoseconds()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await queue.EndBulkImport(queue_pb2.EndBulkImportRequest(lease_token=lease.lease_token))
    assert caught.value.code() == grpc.StatusCode.ABORTED


async def test_what_is_in_flight_for_too_long_ends_the_wish_to_import(
    services: Indexing, queue: Any, hook: Hook
) -> None:
    hook.hold()
    run = await services.begin("tree")
    await hook.reached.wait()

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await queue.BeginBulkImport(
            queue_pb2.BeginBulkImportRequest(parent=_TREE, lease=_seconds(1))
        )

    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    hook.go_on.set()
    assert (await services.wait(run)).state == State.STATE_SUCCEEDED


async def test_an_import_whose_lease_is_over_is_nobodys(one: Replica, admin: QueueAdmin) -> None:
    run = await _running(one)
    old = await admin.begin_import(run.workspace_id, 60)
    with pytest.raises(StateConflictError):
        await admin.begin_import(run.workspace_id, 60)
    await one.value("UPDATE queue_holds SET expires_at = now() - interval '1 s'")

    new = await admin.begin_import(run.workspace_id, 60)

    assert new.token != old.token
    for call in (admin.renew_import, admin.end_import):
        with pytest.raises(LeaseLostError):
            await call(old.token)
    await admin.end_import(new.token)
    assert len(await one.nodes.claim(run, 9)) == 2


async def _running(stores: Replica) -> Run:
    workspace, model = await workspace_with_model(stores)
    await stores.queue(workspace)
    run = await stores.take()
    await stores.apply(run, model, parsed_file("a.py", "a", "b"))
    return run


async def _call(method: Any, request: Any) -> Any:
    return await method(request)


async def _until_held(queue: Any) -> None:
    async with asyncio.timeout(10):
        while True:
            stats = await queue.GetQueueStats(queue_pb2.GetQueueStatsRequest(parent=_TREE))
            if stats.paused:
                return
            await asyncio.sleep(0.02)
