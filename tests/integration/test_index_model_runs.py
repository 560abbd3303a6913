"""Runs of a model beside the active one, and what becomes of them when that one is switched to."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING

import asyncpg
import pytest

from lodestone.indexer.v1 import index_run_service_pb2 as runs_pb2
from lodestone.indexer.v1 import maintenance_service_pb2 as models_pb2
from services.indexer.model import Failure
from services.runtime.errors import NotFoundError
from tests.integration.indexing import Mode
from tests.integration.replicas import (
    MODEL,
    Replica,
    parsed_file,
    until_waiting,
    workspace_with_model,
)
from tests.integration.two_models import SMALL, TREE, add_small, maintenance, runs_ended, two_models
from tests.support.invariants import broken_rules

if TYPE_CHECKING:
    from pathlib import Path

    from services.indexer.model import RegisteredModel, Workspace
    from services.indexer.run import Run
    from services.indexer.storage.database import Database
    from tests.integration.hooks import Hook

_SECOND = replace(MODEL, name="models/second", fingerprint="a" * 64, dimensions=8)
_FINAL = Failure("ERROR_REASON_INVALID_REQUEST", "no")


async def _failed_run_of_second(stores: Replica) -> tuple[Workspace, RegisteredModel, Run]:
    """Returns a workspace, a model beside its active one, and that one's run, which failed."""
    workspace, first = await workspace_with_model(stores)
    await stores.queue(workspace)
    run = await stores.take()
    await stores.apply(run, first, parsed_file("a.py", "a", "b"))
    await stores.complete(run, first, await stores.nodes.claim(run, 99))
    await stores.ledger.finish(run, None)
    second = await stores.workspaces.register_model(_SECOND)
    await stores.models.add(workspace, second)
    beside = await stores.take()
    await stores.ledger.finish(beside, Failure("ERROR_REASON_MODEL_NOT_LOADED", "gone"))
    return workspace, second, await stores.ledger.get("tree", beside.id)


async def test_a_retry_of_a_models_run_embeds_with_the_active_model_once_that_is_it(
    one: Replica, database: Database
) -> None:
    """Red when the run claims nodes and counts the empty queue of the model: it told success."""
    workspace, second, failed = await _failed_run_of_second(one)
    await one.models.activate(workspace, second.id, force=True)
    await one.ledger.request_cancel(await one.take())

    run, created = await one.ledger.retry(failed, uuid.uuid4())

    assert (created, run.model_id) == (True, None)
    assert await broken_rules(database._url) == []


async def test_a_retry_of_a_run_whose_model_was_removed_is_refused(one: Replica) -> None:
    """Red when it is queued: it had nothing to claim, and told success."""
    workspace, second, failed = await _failed_run_of_second(one)
    await one.models.remove(workspace, second.id)

    with pytest.raises(NotFoundError, match="has no model second"):
        await one.ledger.retry(failed, uuid.uuid4())


async def test_what_failed_of_a_model_that_is_added_again_has_a_run_behind_the_one_at_work(
    one: Replica,
) -> None:
    """Red when the run at work, which has looked for the last time, is to take it up."""
    workspace, second, failed = await _failed_run_of_second(one)
    run = await _again(one, failed)
    claimed = await one.model_nodes.claim(run, 9)
    await one.model_nodes.fail(run, {node.id: _FINAL for node in claimed}, claimed, "embed", 1)

    await one.models.add(workspace, second)
    await one.models.add(workspace, second)
    await one.ledger.finish(run, None)

    behind = await one.ledger.take(10)
    assert behind is not None
    assert len(await one.model_nodes.claim(behind, 9)) == len(claimed) == 2
    assert await one.value("SELECT count(*) FROM runs WHERE finished_at IS NULL") == 1


async def _again(stores: Replica, failed: Run) -> Run:
    """Returns a run that does a failed one again, at work."""
    await stores.ledger.retry(failed, uuid.uuid4())
    return await stores.take()


async def test_a_model_that_a_run_puts_in_place_has_no_run_of_its_own_any_more(
    one: Replica, database: Database
) -> None:
    """Red when its queued run stays, which would count a queue that is gone."""
    workspace, second, _ = await _failed_run_of_second(one)
    await one.models.add(workspace, second)
    await one.queue(workspace)
    run = await one.take()
    assert run.model_id is None

    await one.workspaces.activate(run, second, one.ledger)

    assert await one.value("SELECT count(*) FROM runs WHERE finished_at IS NULL") == 1
    assert await broken_rules(database._url) == []


async def test_a_model_that_is_named_is_looked_up_when_its_run_is_made(
    roots: Path, sockets: Path, migrated_url: str, hook: Hook
) -> None:
    """A switch is before the creation of the run at the workspace's row, where both wait.

    Red when the name is looked up before: the run was of a model that was active by then.
    """
    async with two_models(roots, sockets, migrated_url, hook, 5) as services:
        models = maintenance(services)
        await add_small(models)
        await runs_ended(services)
        request = runs_pb2.CreateIndexRunRequest(
            parent=TREE, request_id=str(uuid.uuid4()), mode=Mode.MODE_EMBED_ONLY, model=SMALL
        )
        connection = await asyncpg.connect(services.url)
        try:
            async with connection.transaction():
                await connection.execute("SELECT FROM workspaces FOR UPDATE")
                switch = asyncio.ensure_future(
                    models.ActivateWorkspaceModel(
                        models_pb2.ActivateWorkspaceModelRequest(parent=TREE, model=SMALL)
                    )
                )
                await until_waiting(connection.fetchval)
                creation = asyncio.ensure_future(services.runs.CreateIndexRun(request))
                await until_waiting(connection.fetchval, 2)
        finally:
            await connection.close()
        await switch
        run = (await creation).index_run

        assert run.model == ""
        again = await services.runs.CreateIndexRun(request)
        assert (again.created, again.index_run.name) == (False, run.name)
        await services.wait(run)
        assert await broken_rules(services.url) == []
