"""The ledger of runs: one writer a workspace, under fences that only grow."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import asyncpg
import pytest

from services.indexer.errors import RunOwnershipLostError
from services.indexer.model import Failure
from services.indexer.run import RunCounters
from services.indexer.run_spec import IfRunning, RunPriority
from services.indexer.transitions import RunState
from tests.integration.oracle import broken_rules
from tests.integration.replicas import LEASE_SECONDS, parsed_file, workspace_with_model

if TYPE_CHECKING:
    from services.indexer.run import Run
    from tests.integration.replicas import Replica

_EXPIRE = "UPDATE runs SET lease_until = now() - interval '1 second' WHERE owner IS NOT NULL"


async def test_the_database_refuses_a_second_owner_of_a_workspace(one: Replica) -> None:
    workspace, _ = await workspace_with_model(one)
    await one.queue(workspace)
    await one.take()

    with pytest.raises(asyncpg.UniqueViolationError):
        await one.value(
            "INSERT INTO runs (workspace_id, request_id, request_digest, mode, state, owner, "
            "lease_until) "
            "VALUES ($1, gen_random_uuid(), '', 'full', 'running', gen_random_uuid(), now())",
            workspace.id,
        )


async def test_one_of_two_owners_gets_a_run(one: Replica, other: Replica) -> None:
    workspace, _ = await workspace_with_model(one)
    await one.queue(workspace)

    taken = await asyncio.gather(*(each.ledger.take(10) for each in (one, other) * 5))

    assert len([run for run in taken if run is not None]) == 1


async def test_a_run_whose_owner_stops_is_taken_with_a_larger_fence(
    one: Replica, other: Replica
) -> None:
    workspace, _ = await workspace_with_model(one)
    await one.queue(workspace)
    first = await one.take()
    nothing = await other.ledger.take(10)
    await one.value(_EXPIRE)

    second = await other.take()

    assert nothing is None
    assert second.id == first.id
    assert second.fence > first.fence
    assert second.attempt == 2


async def test_a_lease_begins_when_the_run_is_taken_whatever_that_waited_for(
    one: Replica, other: Replica
) -> None:
    """An owner that fell asleep in a commit keeps nodes locked; who takes its run waits for them.

    Happened: the lease was counted from the start of the transaction that waited, had passed when
    others could see it, and the run was taken a second time from an owner that was well.
    """
    workspace, model = await workspace_with_model(one)
    await one.queue(workspace)
    lost = await one.take()
    await one.apply(lost, model, parsed_file("a.py", "a"))
    await one.nodes.claim(lost, 1)
    await one.value(_EXPIRE)

    async with one.database.transaction() as asleep:
        await asleep.execute("SELECT 1 FROM nodes FOR UPDATE")
        taking = asyncio.ensure_future(other.take())
        done, _ = await asyncio.wait([taking], timeout=3)
    await taking

    assert not done, "it had to wait"
    assert await one.value(
        "SELECT extract(epoch FROM lease_until - clock_timestamp())::float8 FROM runs "
        "WHERE owner IS NOT NULL"
    ) > (LEASE_SECONDS - 1)


async def test_an_owner_that_lost_its_run_writes_nothing(one: Replica, other: Replica) -> None:
    """Planted once: a claim that did not look at the run's fence gave the zombie a node."""
    workspace, model = await workspace_with_model(one)
    await one.queue(workspace)
    lost = await one.take()
    await one.apply(lost, model, parsed_file("a.py", "a", "b"))
    claimed = await one.nodes.claim(lost, 1)
    await one.value(_EXPIRE)
    run = await other.take()
    before = await _all_rows(one)

    assert await one.nodes.claim(lost, 10) == []
    for write in (
        one.ledger.beat(lost),
        one.ledger.record(lost, RunCounters(forwards=1)),
        one.ledger.finish_scan(lost, {}, ()),
        one.ledger.finish_plan(lost),
        one.ledger.finish(lost, None),
        one.apply(lost, model, parsed_file("b.py", "c")),
        one.files.remove(lost, ["a.py"]),
        one.files.touch(lost, {}),
        one.complete(lost, model, claimed),
        one.nodes.fail(lost, {claimed[0].id: Failure("R", "m")}, claimed, "embed", 1),
    ):
        with pytest.raises(RunOwnershipLostError):
            await write
    await one.ledger.release(lost)
    await one.nodes.release(lost, claimed)

    assert await _all_rows(one) == before
    assert await _end_all(other, run, model) is RunState.SUCCEEDED
    assert await broken_rules(one.database._url) == []


async def test_a_lost_owner_switches_no_model(one: Replica, other: Replica) -> None:
    workspace, model = await workspace_with_model(one)
    await one.queue(workspace)
    lost = await one.take()
    await one.value(_EXPIRE)
    await other.take()
    await one.value("UPDATE workspaces SET active_model_id = NULL")

    with pytest.raises(RunOwnershipLostError):
        await one.workspaces.activate(lost, model, one.ledger)

    assert await one.value("SELECT active_model_id FROM workspaces") is None


async def test_a_beat_waits_for_no_commit(one: Replica) -> None:
    """A commit locks nodes first and the run's row last; a beat the other way was a deadlock."""
    workspace, model = await workspace_with_model(one)
    await one.queue(workspace)
    run = await one.take()
    await one.apply(run, model, parsed_file("a.py", "a"))
    await one.nodes.claim(run, 1)

    async with one.database.transaction() as connection:
        await connection.execute("SELECT 1 FROM nodes FOR UPDATE")
        async with asyncio.timeout(5):
            assert not (await one.ledger.beat(run)).cancel
        await one.ledger.add(connection, run, RunCounters(tokens=1))


@pytest.mark.parametrize(("cancel", "state"), [(False, RunState.STALE), (True, RunState.CANCELLED)])
async def test_a_run_that_stops_its_owners_is_taken_no_more(
    one: Replica, *, cancel: bool, state: RunState
) -> None:
    workspace, _ = await workspace_with_model(one)
    run = await one.queue(workspace)
    for _ in range(2):
        run = await one.take(2)
        await one.value(_EXPIRE)
    if cancel:
        await one.ledger.request_cancel(run)

    assert await one.ledger.take(2) is None

    ended = await one.ledger.get("tree", run.id)
    assert ended.state is state
    assert (ended.error is None) is cancel


async def test_a_stale_run_does_not_hold_up_the_next(one: Replica) -> None:
    first, _ = await workspace_with_model(one)
    second, _ = await one.workspaces.create("other", first.tree, "")
    await one.queue(first)
    await one.take(1)
    await one.value(_EXPIRE)
    waiting = await one.queue(second)

    assert (await one.take(1)).id == waiting.id


async def test_a_released_run_waits_and_burns_no_attempt(one: Replica, other: Replica) -> None:
    workspace, model = await workspace_with_model(one)
    await one.queue(workspace)
    run = await one.take()
    await one.apply(run, model, parsed_file("a.py", "a"))
    await one.nodes.claim(run, 5)

    await one.ledger.release(run)

    assert await one.value("SELECT state FROM runs WHERE finished_at IS NULL") == "queued"
    assert await one.value("SELECT (status, attempt)::text FROM nodes") == "(pending,0)"
    assert (await other.take()).attempt == 1


async def _end_all(stores: Replica, run: Run, model: object) -> RunState:
    while claimed := await stores.nodes.claim(run, 10):
        await stores.complete(run, model, claimed)  # type: ignore[arg-type]
    return await stores.ledger.finish(run, None)


async def _all_rows(stores: Replica) -> list[str]:
    async with stores.database.connection() as connection:
        return [
            str(await connection.fetch(f"SELECT * FROM {table} ORDER BY 1, 2"))
            for table in ("runs", "files", "nodes", "node_terms", "embedding_cache", "run_outcomes")
        ]


async def test_a_run_that_is_left_rests_and_burns_an_attempt_until_it_embeds(
    one: Replica, other: Replica
) -> None:
    """Nor does one that is at work give way to one that rests: it would be taken again itself."""
    workspace, model = await workspace_with_model(one)
    await one.queue(workspace, priority=RunPriority.INTERACTIVE)
    run = await one.take()
    await one.apply(run, model, parsed_file("a.py", "a", "b"))
    await one.ledger.release(run, left=True)
    await one.queue(workspace, if_running=IfRunning.QUEUE)
    beside = await other.take()

    assert beside.id != run.id
    assert not (await other.ledger.beat(beside)).give_way
    await other.ledger.release(beside)
    await one.value("UPDATE runs SET updated_at = now() - interval '2 s' WHERE id = $1", run.id)
    run = await one.take()
    assert run.attempt == 2
    await one.complete(run, model, await one.nodes.claim(run, 1))
    await one.ledger.release(run, left=True)
    assert await one.value("SELECT attempt FROM runs WHERE id = $1", run.id) == 0
