"""A paused run rests: nothing is fetched, embedded or counted, whatever is restarted meanwhile."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import asyncpg
import grpc
import pytest

from lodestone.indexer.v1 import index_run_service_pb2 as runs_pb2
from services.indexer.model import Failure
from services.indexer.run import RunMode
from services.indexer.transitions import RunState
from services.runtime.errors import StateConflictError
from tests.integration.indexing import State, indexing
from tests.integration.oracle import broken_rules, check
from tests.integration.replicas import parsed_file, replica, workspace_with_model
from tests.integration.samples import write_many, write_tree

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from services.indexer.storage.database import Database
    from tests.integration.hooks import Hook
    from tests.integration.indexing import Indexing
    from tests.integration.replicas import Replica

_NODES = 60
_EXPIRE = "UPDATE runs SET lease_until = now() - interval '1 second' WHERE owner IS NOT NULL"


@pytest.fixture
async def services(
    roots: Path, sockets: Path, migrated_url: str, hook: Hook
) -> AsyncIterator[Indexing]:
    """Services whose batches are small, so that a run can be met in its middle."""
    write_many(roots / "tree", _NODES, per_file=6)
    async with indexing(
        roots,
        sockets,
        migrated_url,
        embed=hook.app,
        embed_batch_nodes=8,
        embed_batches_in_flight=2,
    ) as running:
        await running.create("tree", "tree")
        yield running
        hook.go_on.set()


async def _pause_in_the_middle(services: Indexing, hook: Hook) -> runs_pb2.IndexRun:
    """Returns a run that paused while two batches stood before the model."""
    hook.hold()
    run = await services.begin("tree")
    await hook.reached.wait()
    await services.wait(run, lambda seen: seen.progress.nodes_total_final)
    response = await services.runs.PauseIndexRun(runs_pb2.PauseIndexRunRequest(name=run.name))
    assert response.index_run.state == State.STATE_PAUSING
    hook.go_on.set()
    return await services.wait(run, lambda seen: seen.state == State.STATE_PAUSED)


async def _index_another_tree(services: Indexing) -> None:
    """Goes the whole way of another run: whatever was to be taken was taken by then."""
    write_tree(services.roots / "other")
    await services.create("other", "other")
    await services.succeed("other")


async def _resume(services: Indexing, run: runs_pb2.IndexRun) -> runs_pb2.IndexRun:
    response: runs_pb2.ResumeIndexRunResponse = await services.runs.ResumeIndexRun(
        runs_pb2.ResumeIndexRunRequest(name=run.name)
    )
    return response.index_run


async def test_a_pause_takes_the_batches_in_flight_and_nothing_more(
    services: Indexing, hook: Hook
) -> None:
    """Red with a claim and an owner that do not look at the run's state: it never paused."""
    paused = await _pause_in_the_middle(services, hook)

    assert paused.progress.nodes_embedded == len(hook.texts) <= 2 * 8
    assert paused.progress.nodes_pending == _NODES - len(hook.texts)
    assert not paused.HasField("end_time")
    await _index_another_tree(services)
    assert len([text for text in hook.texts if "def work_" in text]) <= 2 * 8
    assert await _get(services, paused) == paused
    assert await broken_rules(services.url) == []


async def test_a_resumed_run_goes_on_and_embeds_nothing_twice(
    services: Indexing, hook: Hook
) -> None:
    paused = await _pause_in_the_middle(services, hook)

    resumed = await _resume(services, paused)
    ended = await services.wait(paused)

    assert resumed.state in {State.STATE_QUEUED, State.STATE_RUNNING}
    assert ended.state == State.STATE_SUCCEEDED
    assert ended.attempt == 1
    assert len(hook.texts) == len(set(hook.texts)) == _NODES
    assert ended.progress.nodes_embedded == _NODES
    await check(services, "tree", "tree")


async def test_a_paused_run_is_paused_after_every_process_was_restarted(
    services: Indexing, hook: Hook
) -> None:
    """A dispatcher that took paused runs would be refused by a CHECK: a paused run has no owner."""
    paused = await _pause_in_the_middle(services, hook)
    for service in (services.indexer, services.embed, services.io):
        await service.stop()
    texts = set(hook.texts)

    for service in (services.io, services.embed, services.indexer):
        await service.start()
    await _index_another_tree(services)

    assert await _get(services, paused) == paused
    assert {text for text in hook.texts if "def work_" in text} == texts
    await _resume(services, paused)
    assert (await services.wait(paused)).state == State.STATE_SUCCEEDED
    await check(services, "tree", "tree")


async def test_a_paused_run_is_cancelled_at_once(services: Indexing, hook: Hook) -> None:
    paused = await _pause_in_the_middle(services, hook)

    await services.runs.CancelIndexRun(runs_pb2.CancelIndexRunRequest(name=paused.name))

    ended = await _get(services, paused)
    assert ended.state == State.STATE_CANCELLED
    assert ended.HasField("end_time")
    assert ended.progress.nodes_pending == paused.progress.nodes_pending
    assert await broken_rules(services.url) == []
    await services.succeed("tree")
    await check(services, "tree", "tree")


async def test_a_run_that_is_paused_in_its_scan_goes_on_after_it(
    services: Indexing, hook: Hook
) -> None:
    hook.hold()
    run = await services.begin("tree")
    await services.runs.PauseIndexRun(runs_pb2.PauseIndexRunRequest(name=run.name))
    hook.go_on.set()
    await services.wait(run, lambda seen: seen.state == State.STATE_PAUSED)
    await _resume(services, run)

    assert (await services.wait(run)).state == State.STATE_SUCCEEDED
    await check(services, "tree", "tree")


async def test_a_batch_that_does_not_end_holds_up_a_pause_for_its_grace_alone(
    roots: Path, sockets: Path, migrated_url: str, hook: Hook
) -> None:
    write_many(roots / "tree", 20)
    async with indexing(
        roots, sockets, migrated_url, embed=hook.app, pause_grace_seconds=0.2
    ) as services:
        await services.create("tree", "tree")
        hook.hold()
        run = await services.begin("tree")
        await hook.reached.wait()
        await services.wait(run, lambda seen: seen.progress.nodes_total_final)

        await services.runs.PauseIndexRun(runs_pb2.PauseIndexRunRequest(name=run.name))
        paused = await services.wait(run, lambda seen: seen.state == State.STATE_PAUSED, 10)

        assert paused.progress.nodes_pending == 20
        connection = await asyncpg.connect(migrated_url)
        rows = await connection.fetch("SELECT DISTINCT status, attempt FROM nodes")
        await connection.close()
        assert [tuple(row) for row in rows] == [("pending", 0)]
        hook.go_on.set()
        await _resume(services, run)
        assert (await services.wait(run)).state == State.STATE_SUCCEEDED


async def test_a_finished_run_is_neither_paused_nor_resumed(services: Indexing) -> None:
    run = await services.run("tree")

    for call, request in (
        (services.runs.PauseIndexRun, runs_pb2.PauseIndexRunRequest(name=run.name)),
        (services.runs.ResumeIndexRun, runs_pb2.ResumeIndexRunRequest(name=run.name)),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(request)
        assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION


async def test_a_pause_of_a_queued_run_is_kept_and_asked_twice_is_once(one: Replica) -> None:
    workspace, _ = await workspace_with_model(one)
    run = await one.queue(workspace)

    await one.ledger.request_pause(run)
    await one.ledger.request_pause(run)

    assert await one.ledger.take(10) is None
    await one.ledger.request_resume(run)
    await one.ledger.request_resume(run)
    assert (await one.take()).id == run.id


async def test_a_pausing_run_claims_nothing_though_its_owner_knows_nothing(one: Replica) -> None:
    """Red with a claim that does not look at the run's state."""
    workspace, model = await workspace_with_model(one)
    await one.queue(workspace)
    run = await one.take()
    await one.apply(run, model, parsed_file("a.py", "a", "b"))
    claimed = await one.nodes.claim(run, 1)
    await one.ledger.request_pause(run)

    assert await one.nodes.claim(run, 1) == []
    assert (await one.nodes.outlook(run)).stopping
    assert await one.complete(run, model, claimed) == 1, "the batch in flight comes to its end"
    assert (await one.ledger.beat(run)).state is RunState.PAUSING


async def test_a_wish_is_told_with_the_next_write(one: Replica) -> None:
    workspace, model = await workspace_with_model(one)
    await one.queue(workspace)
    run = await one.take()
    told: list[RunState] = []
    one.ledger.on_state = lambda _, state: told.append(state)
    await one.ledger.request_pause(run)

    await one.apply(run, model, parsed_file("a.py", "a"))

    assert told == [RunState.PAUSING]


async def test_a_pausing_run_whose_owner_died_is_paused_by_who_finds_it(
    one: Replica, database: Database
) -> None:
    """Red when it was taken over instead: its counters began at zero in a paused run."""
    workspace, model = await workspace_with_model(one)
    await one.queue(workspace)
    run = await one.take()
    await one.apply(run, model, parsed_file("a.py", "a", "b"))
    await one.nodes.claim(run, 1)
    await one.ledger.request_pause(run)
    await one.value(_EXPIRE)

    assert await replica(database).ledger.take(10) is None

    found = await one.ledger.get("tree", run.id)
    assert found.state is RunState.PAUSED
    assert found.counters.files_parsed == 1
    assert await one.value("SELECT count(*) FROM nodes WHERE status = 'pending'") == 2


async def test_a_pause_that_is_taken_back_before_it_came_changes_nothing(one: Replica) -> None:
    workspace, _ = await workspace_with_model(one)
    await one.queue(workspace)
    run = await one.take()
    await one.ledger.request_pause(run)

    await one.ledger.request_resume(run)

    assert (await one.ledger.beat(run)).state is RunState.RUNNING
    await one.ledger.release(run)
    assert (await one.ledger.get("tree", run.id)).state is RunState.QUEUED


async def test_a_resumed_run_warns_once_and_tries_no_failure_again(one: Replica) -> None:
    """Red when what a first take does was done by every take that burns no attempt."""
    workspace, model = await workspace_with_model(one)
    run = await one.queue(workspace, RunMode.FULL)
    failure = Failure("ERROR_REASON_BAD_VECTOR", "never")
    for _ in range(2):
        run = await one.take()
        await one.apply(run, model, parsed_file("a.py", "a"))
        if claimed := await one.nodes.claim(run, 1):
            await one.nodes.fail(run, {claimed[0].id: failure}, claimed, "embed", 1)
        await one.ledger.finish_scan(run, {}, ["a folder could not be looked at"])
        await one.ledger.request_pause(run)
        await one.ledger.release(run)
        await one.ledger.request_resume(run)

    found = await one.ledger.get("tree", run.id)
    assert found.warnings == ("a folder could not be looked at",)
    assert await one.value("SELECT (status, attempt)::text FROM nodes") == "(failed,1)"


async def test_a_run_that_is_being_cancelled_is_not_paused(one: Replica) -> None:
    workspace, _ = await workspace_with_model(one)
    await one.queue(workspace)
    run = await one.take()
    await one.ledger.request_cancel(run)

    with pytest.raises(StateConflictError):
        await one.ledger.request_pause(run)


async def test_a_cancel_during_a_pause_wins(one: Replica) -> None:
    workspace, _ = await workspace_with_model(one)
    await one.queue(workspace)
    run = await one.take()
    await one.ledger.request_pause(run)
    await one.ledger.request_cancel(run)

    await one.ledger.release(run)

    assert (await one.ledger.get("tree", run.id)).state is RunState.CANCELLED


async def _get(services: Indexing, run: runs_pb2.IndexRun) -> runs_pb2.IndexRun:
    async with asyncio.timeout(10):
        response: runs_pb2.GetIndexRunResponse = await services.runs.GetIndexRun(
            runs_pb2.GetIndexRunRequest(name=run.name)
        )
    return response.index_run
