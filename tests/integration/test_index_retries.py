"""A retry does what is left of a run, also of one that broke off before it began."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest

from services.indexer.model import Failure
from services.indexer.run import RunMode
from services.indexer.run_spec import IfRunning
from services.indexer.storage import queue_admin
from services.indexer.storage.queue_admin import QueueAdmin
from services.indexer.storage.run_create import MOST_WAITING_RUNS
from services.runtime.errors import DependencyUnavailableError, OverloadedError
from tests.integration.replicas import parsed_file, workspace_with_model

if TYPE_CHECKING:
    from services.indexer.model import Workspace
    from services.indexer.run import Run
    from services.indexer.storage.database import Database
    from tests.integration.replicas import Replica

_QUEUE = IfRunning.QUEUE
_FINAL = Failure("ERROR_REASON_INVALID_REQUEST", "no")
_STATES = "SELECT array_agg(status ORDER BY status) FROM nodes"
_UNFINISHED = "SELECT count(*) FROM runs WHERE finished_at IS NULL"


async def _with_pending(stores: Replica, *texts: str) -> tuple[Workspace, list[int]]:
    """Returns a workspace with nodes that wait, and their ids."""
    workspace, model = await workspace_with_model(stores)
    await stores.queue(workspace)
    run = await stores.take()
    await stores.apply(run, model, parsed_file("a.py", *texts))
    await stores.ledger.finish(run, None)
    return workspace, await stores.value("SELECT array_agg(id ORDER BY id) FROM nodes")


async def test_a_retry_of_a_run_that_never_began_has_the_nodes_that_it_was_given(
    one: Replica,
) -> None:
    """Red when the scope is made anew from the run's paths alone: it succeeded with no node."""
    workspace, nodes = await _with_pending(one, "a", "b", "c")
    given = tuple(nodes[:2])
    scoped = await one.queue(workspace, RunMode.SCOPED, _QUEUE, node_ids=given, paths=("b.py",))
    await one.ledger.request_cancel(scoped)

    retried, _ = await one.ledger.retry(await one.ledger.get("tree", scoped.id), uuid.uuid4())

    run = await one.take()
    assert run.id == retried.id
    assert (run.mode, run.paths, run.counters.nodes_total) == (RunMode.SCOPED, ("b.py",), 2)
    assert tuple(node.id for node in await one.nodes.claim(run, 10)) == given


async def test_a_retry_of_a_run_that_died_in_its_scan_has_what_it_was_given_alone(
    one: Replica,
) -> None:
    """Red when it takes along what the scan had found by then, which is found again."""
    workspace, nodes = await _with_pending(one, "a", "b")
    await one.queue(workspace, RunMode.SCOPED, _QUEUE, node_ids=(nodes[0],), paths=("a.py",))
    run = await one.take()
    await one.ledger.cover_paths(run, ["a.py"])
    await one.ledger.request_cancel(run)
    await one.ledger.finish(run, None)

    await one.ledger.retry(await one.ledger.get("tree", run.id), uuid.uuid4())

    assert (await one.take()).counters.nodes_total == 1


async def _with_failed(stores: Replica, *texts: str) -> Workspace:
    """Returns a workspace whose nodes failed for good."""
    workspace, model = await workspace_with_model(stores)
    await stores.queue(workspace)
    run = await stores.take()
    await stores.apply(run, model, parsed_file("a.py", *texts))
    claimed = await stores.nodes.claim(run, 99)
    await stores.nodes.fail(run, {node.id: _FINAL for node in claimed}, claimed, "embed", 1)
    await stores.ledger.finish(run, None)
    return workspace


async def test_failed_nodes_are_put_back_with_the_run_that_takes_them_up_or_not_at_all(
    one: Replica, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is stopped between two steps leaves no node that waits for no run.

    Red when the run is queued after all steps: the nodes waited, and the call, made again, found
    none failed and queued no run.
    """
    workspace = await _with_failed(one, "a", "b")
    monkeypatch.setattr(queue_admin, "_RETRY_BATCH_NODES", 1)
    admin, steps = QueueAdmin(database), 0
    queue_embedding = one.ledger.queue_embedding

    async def queue_once(*arguments: Any) -> Run:
        nonlocal steps
        steps += 1
        if steps == 2:
            raise ConnectionError
        return await queue_embedding(*arguments)

    monkeypatch.setattr(one.ledger, "queue_embedding", queue_once)
    with pytest.raises(DependencyUnavailableError):
        await admin.retry_failed(workspace.id, one.ledger)
    assert await one.value(_STATES) == ["failed", "pending"]
    assert await one.value(_UNFINISHED) == 1
    run = await one.take()

    retried = await admin.retry_failed(workspace.id, one.ledger)

    assert await one.value(_STATES) == ["pending", "pending"]
    assert retried[None].count == 1
    assert retried[None].run_name != run.name, "a run at work may have looked for the last time"
    assert await one.value(_UNFINISHED) == 2


async def test_no_node_is_put_back_while_no_run_may_wait_for_it(
    one: Replica, database: Database
) -> None:
    workspace = await _with_failed(one, "a")
    for _ in range(MOST_WAITING_RUNS):
        await one.queue(workspace, if_running=_QUEUE)

    with pytest.raises(OverloadedError):
        await QueueAdmin(database).retry_failed(workspace.id, one.ledger)

    assert await one.value(_STATES) == ["failed"]
