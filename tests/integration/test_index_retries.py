"""A retry does what is left of a run, also of one that broke off before it began."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest

from services.indexer.run import RunMode
from services.indexer.run_spec import IfRunning
from tests.integration.replicas import parsed_file, replica, workspace_with_model

if TYPE_CHECKING:
    from services.indexer.model import Workspace
    from services.indexer.storage.database import Database
    from tests.integration.replicas import Replica

_QUEUE = IfRunning.QUEUE


@pytest.fixture
def one(database: Database) -> Replica:
    return replica(database)


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
