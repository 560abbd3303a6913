"""What writes all nodes of a workspace takes its time: one that is begun again would never end."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import asyncpg
import pytest

from services.indexer.model import Failure
from services.indexer.run import RunMode
from services.indexer.run_spec import IfRunning
from services.indexer.storage.database import Database
from services.indexer.storage.queue_admin import QueueAdmin
from services.runtime.errors import DependencyUnavailableError
from tests.integration.replicas import MODEL, parsed_file, replica, workspace_with_model
from tests.support.invariants import broken_rules

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from services.indexer.model import RegisteredModel, Workspace
    from tests.integration.replicas import Replica

_LONGEST_SECONDS = 1.0
_SECOND = replace(MODEL, name="models/second", fingerprint="a" * 64, dimensions=8)
_FINAL = Failure("ERROR_REASON_INVALID_REQUEST", "no")
_SLOW = f"""
CREATE FUNCTION take_time() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_sleep({2 * _LONGEST_SECONDS});
  RETURN NULL;
END $$;
CREATE TRIGGER slow AFTER UPDATE OR DELETE ON nodes FOR EACH ROW
  EXECUTE FUNCTION take_time();
CREATE TRIGGER slow AFTER DELETE ON model_nodes FOR EACH ROW EXECUTE FUNCTION take_time()
"""
"""As on millions of rows."""


@pytest.fixture
async def one(migrated_url: str) -> AsyncIterator[Replica]:
    """Stores whose statements may take a second, but for the longest ones."""
    database = Database(migrated_url, connections=4, timeout_seconds=_LONGEST_SECONDS)
    await database.open()
    yield replica(database)
    await database.close()


async def _with_failed(stores: Replica) -> tuple[Workspace, RegisteredModel]:
    """Returns a workspace with a node that failed and one that did not."""
    workspace, model = await workspace_with_model(stores)
    await stores.queue(workspace)
    run = await stores.take()
    await stores.apply(run, model, parsed_file("a.py", "a", "b"))
    claimed = await stores.nodes.claim(run, 9)
    await stores.nodes.fail(run, {claimed[0].id: _FINAL}, claimed, "embed", 1)
    await stores.complete(run, model, claimed[1:])
    await stores.ledger.finish(run, None)
    return workspace, model


async def _be_slow(stores: Replica) -> None:
    connection = await asyncpg.connect(stores.database._url)
    await connection.execute(_SLOW)
    await connection.close()


async def test_another_model_is_activated_however_long_it_takes(one: Replica) -> None:
    """Red with the time of other statements: its run was given back and taken up for ever."""
    workspace, _ = await _with_failed(one)
    second = await one.workspaces.register_model(_SECOND)
    await one.queue(workspace)
    run = await one.take()
    await _be_slow(one)

    await one.workspaces.activate(run, second, one.ledger)

    assert (await one.workspaces.get("tree")).active_model_id == second.id
    assert await broken_rules(one.database._url) == []


async def test_a_workspace_is_deleted_however_long_it_takes(one: Replica) -> None:
    await _with_failed(one)
    await _be_slow(one)

    await one.workspaces.delete("tree")

    assert await one.value("SELECT count(*) FROM nodes") == 0


async def test_a_run_that_tries_all_again_is_taken_however_long_it_takes(one: Replica) -> None:
    """Red with the time of other statements: no replica took any run any more."""
    workspace, _ = await _with_failed(one)
    queued = await one.queue(workspace, RunMode.FULL, IfRunning.QUEUE)
    await _be_slow(one)

    assert (await one.take()).id == queued.id
    assert await one.value("SELECT count(*) FROM nodes WHERE status = 'pending'") == 1


async def test_an_import_that_cannot_wait_for_claims_holds_nothing_up(one: Replica) -> None:
    """Somebody has a run's row locked for longer than a statement may take.

    Red when the hold stays: nobody knew its token, and its lease had to pass.
    """
    workspace, _ = await workspace_with_model(one)
    await one.queue(workspace)
    admin = QueueAdmin(one.database)
    locker = await asyncpg.connect(one.database._url)
    async with locker.transaction():
        await locker.execute("SELECT FROM runs WHERE finished_at IS NULL FOR UPDATE")
        with pytest.raises(DependencyUnavailableError):
            await admin.begin_import(workspace.id, 3600)
    await locker.close()

    await admin.begin_import(workspace.id, 3600)
