"""The ledger of runs: what is asked for is queued once, and what came of it is told."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING

import asyncpg
import pytest

from services.indexer.errors import RequestIdReusedError
from services.indexer.model import Failure
from services.indexer.run import RunCounters, RunMode
from services.indexer.run_spec import IfRunning, RunSpec
from services.indexer.transitions import RunState
from services.runtime.errors import NotFoundError, StateConflictError
from tests.integration.oracle import broken_rules
from tests.integration.replicas import parsed_file, workspace_with_model

if TYPE_CHECKING:
    from tests.integration.replicas import Replica


async def test_a_request_sent_twice_queues_one_run(one: Replica) -> None:
    workspace, _ = await workspace_with_model(one)
    request = uuid.uuid4()

    first = await one.ledger.create(
        workspace.id, request, RunSpec(RunMode.FULL, ("*.md",)), IfRunning.FAIL
    )
    second = await one.ledger.create(
        workspace.id, request, RunSpec(RunMode.FULL, ("*.md",)), IfRunning.FAIL
    )

    assert (first[1], second[1]) == (True, False)
    assert first[0].id == second[0].id


async def test_a_request_that_joined_finds_its_run_again_when_that_has_ended(
    one: Replica, other: Replica
) -> None:
    """Red when the join is not stored: each retry queued a run of its own."""
    workspace, _ = await workspace_with_model(one)
    first = await one.queue(workspace)
    request = uuid.uuid4()
    joined = await one.ledger.create(workspace.id, request, RunSpec(), IfRunning.JOIN)
    await one.ledger.finish(await one.take(), None)

    again = await asyncio.gather(
        *(
            replica.ledger.create(workspace.id, request, RunSpec(), if_running)
            for replica in (one, other)
            for if_running in IfRunning
        )
    )

    assert [(run.id, created) for run, created in (joined, *again)] == [(first.id, False)] * 7
    with pytest.raises(RequestIdReusedError):
        await one.ledger.create(workspace.id, request, RunSpec(RunMode.FULL), IfRunning.JOIN)


_SRC = RunSpec(RunMode.SCOPED, paths=("src", "docs"))


@pytest.mark.parametrize(
    ("there", "asked", "joins"),
    [
        (RunSpec(RunMode.FULL), RunSpec(RunMode.FULL), True),
        (RunSpec(), RunSpec(RunMode.FULL), False),
        (RunSpec(RunMode.FULL), RunSpec(), True),
        (RunSpec(), RunSpec(exclude=("*.md",)), False),
        (RunSpec(exclude=("*.md",)), RunSpec(), False),
        (_SRC, RunSpec(RunMode.SCOPED, paths=("src",)), True),
        (_SRC, RunSpec(RunMode.SCOPED, paths=("src", "tests")), False),
        (_SRC, RunSpec(RunMode.SCOPED, node_ids=(1,)), False),
        (_SRC, RunSpec(), False),
        (RunSpec(), _SRC, False),
        (RunSpec(RunMode.REPAIR), RunSpec(), False),
        (RunSpec(), RunSpec(RunMode.EMBED_ONLY), True),
        (RunSpec(RunMode.EMBED_ONLY), RunSpec(), False),
    ],
)
async def test_a_run_joins_only_one_that_covers_it(
    one: Replica, *, there: RunSpec, asked: RunSpec, joins: bool
) -> None:
    """Red when whatever run is not finished is joined: what was asked for was dropped."""
    workspace, _ = await workspace_with_model(one)
    first, _ = await one.ledger.create(workspace.id, uuid.uuid4(), there, IfRunning.JOIN)

    run, created = await one.ledger.create(workspace.id, uuid.uuid4(), asked, IfRunning.JOIN)

    assert (run.id == first.id, created) == (joins, not joins)
    assert (run.mode, run.paths) == (
        (there.mode, there.paths) if joins else (asked.mode, asked.paths)
    )


async def test_a_run_that_looked_already_is_not_joined_by_one_that_it_stands_for(
    one: Replica,
) -> None:
    """Red when a full run past its scan, or a scoped one at work, is joined by another kind."""
    workspace, _ = await workspace_with_model(one)
    full = await one.queue(workspace, RunMode.FULL)
    taken = await one.take()
    assert (await one.queue(workspace)).id == full.id
    await one.ledger.finish_scan(taken, {}, ())
    assert (await one.queue(workspace)).id != full.id
    assert (await one.queue(workspace, RunMode.FULL)).id == full.id
    await one.ledger.finish(taken, None)
    scoped = await one.queue(workspace, RunMode.SCOPED, paths=("src",), priority=4)
    await one.take()
    assert (await one.queue(workspace, RunMode.SCOPED, paths=("src",))).id != scoped.id


async def test_two_calls_at_once_with_one_id_join_once(one: Replica, other: Replica) -> None:
    """Red with a note of the join before the workspace is locked, or without one."""
    workspace, _ = await workspace_with_model(one)
    first = await one.queue(workspace)
    request = uuid.uuid4()

    made = await asyncio.gather(
        *(
            replica.ledger.create(workspace.id, request, RunSpec(), IfRunning.JOIN)
            for replica in (one, other) * 5
        )
    )

    assert {(run.id, created) for run, created in made} == {(first.id, False)}
    assert await one.value("SELECT count(*) FROM run_requests") == 1


async def test_a_request_id_with_another_request_is_refused(one: Replica) -> None:
    workspace, _ = await workspace_with_model(one)
    request = uuid.uuid4()
    await one.ledger.create(workspace.id, request, RunSpec(RunMode.FULL), IfRunning.JOIN)

    with pytest.raises(RequestIdReusedError):
        await one.ledger.create(workspace.id, request, RunSpec(), IfRunning.JOIN)


async def test_twenty_callers_at_once_queue_one_run(one: Replica) -> None:
    workspace, _ = await workspace_with_model(one)

    made = await asyncio.gather(
        *(
            one.ledger.create(workspace.id, uuid.uuid4(), RunSpec(), IfRunning.JOIN)
            for _ in range(20)
        )
    )

    assert len({run.id for run, _ in made}) == 1
    assert sum(created for _, created in made) == 1


async def test_a_second_run_that_may_not_join_is_refused(one: Replica) -> None:
    workspace, _ = await workspace_with_model(one)
    await one.queue(workspace)

    with pytest.raises(StateConflictError):
        await one.ledger.create(workspace.id, uuid.uuid4(), RunSpec(RunMode.FULL), IfRunning.FAIL)


async def test_a_run_of_a_deleted_workspace_is_not_found(one: Replica) -> None:
    workspace, _ = await workspace_with_model(one)
    await one.workspaces.delete("tree")

    with pytest.raises(NotFoundError):
        await one.queue(workspace)


@pytest.mark.parametrize("state", ["queued", "running"])
async def test_a_run_is_cancelled_if_and_only_if_it_was_asked_for(one: Replica, state: str) -> None:
    workspace, _ = await workspace_with_model(one)
    run = await one.queue(workspace)
    if state == "running":
        run = await one.take()
    await one.ledger.request_cancel(run)

    if state == "running":
        assert (await one.ledger.beat(run)).cancel
        await one.ledger.finish(run, Failure("ERROR_REASON_INTERNAL", "also failed"))

    ended = await one.ledger.get("tree", run.id)
    assert ended.state is RunState.CANCELLED
    assert ended.finished_at is not None


async def test_a_cancel_after_the_end_changes_nothing(one: Replica) -> None:
    workspace, _ = await workspace_with_model(one)
    await one.queue(workspace)
    run = await one.take()
    await one.ledger.finish(run, None)

    await one.ledger.request_cancel(run)

    assert (await one.ledger.get("tree", run.id)).state is RunState.SUCCEEDED


async def test_counters_of_many_adders_add_up(one: Replica) -> None:
    workspace, _ = await workspace_with_model(one)
    await one.queue(workspace)
    run = await one.take()

    await asyncio.gather(
        *(
            one.ledger.record(run, RunCounters(forwards=2), stage_seconds={"embed": 0.5})
            for _ in range(20)
        )
    )

    seen = await one.ledger.get("tree", run.id)
    assert seen.counters.forwards == 40
    assert seen.stage_seconds == {"embed": 10.0}
    assert seen.version == run.version + 20


async def test_nodes_that_are_left_are_a_warning_with_both_numbers(one: Replica) -> None:
    workspace, model = await workspace_with_model(one)
    await one.queue(workspace)
    run = await one.take()
    await one.apply(run, model, parsed_file("a.py", "a", "b"))
    await one.complete(run, model, await one.nodes.claim(run, 1))

    state = await one.ledger.finish(run, None)

    ended = await one.ledger.get("tree", run.id)
    assert state is RunState.SUCCEEDED_WITH_WARNINGS
    assert ended.warnings == ("1 of 2 nodes are still to be embedded.",)
    assert await broken_rules(one.database._url) == []


async def test_runs_are_listed_newest_first_page_by_page(one: Replica) -> None:
    workspace, _ = await workspace_with_model(one)
    made = [await one.queue(workspace) for _ in range(1)]
    for _ in range(3):
        run = await one.take()
        await one.ledger.finish(run, None)
        made.append(await one.queue(workspace))

    first = await one.ledger.page(workspace.id, 1 << 60, 2)
    rest = await one.ledger.page(workspace.id, first[-1].seq, 10)

    wanted = [run.id for run in reversed(made)]
    assert [run.id for run in first + rest][: len(wanted)] == wanted


@pytest.mark.parametrize(
    ("table", "column", "before", "after"),
    [
        ("runs", "state", "succeeded", "running"),
        ("runs", "state", "queued", "succeeded"),
        ("nodes", "status", "embedded", "failed"),
        ("nodes", "status", "pending", "failed"),
    ],
)
async def test_the_database_refuses_a_step_that_the_table_does_not_name(
    one: Replica, table: str, column: str, before: str, after: str
) -> None:
    workspace, model = await workspace_with_model(one)
    await one.queue(workspace)
    run = await one.take()
    await one.apply(run, model, parsed_file("a.py", "a", "b"))
    await one.complete(run, model, await one.nodes.claim(run, 1))
    await one.ledger.release(run)

    with pytest.raises(asyncpg.CheckViolationError, match=f"{before} to {after}"):
        await one.value(
            f"UPDATE {table} SET {column} = $1 WHERE {column} = $2 RETURNING 1", after, before
        )
