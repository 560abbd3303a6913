"""Which run goes first, what a second one does, and what is forgotten in time."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING

import asyncpg
import grpc
import pytest

from lodestone.indexer.v1 import index_run_service_pb2 as runs_pb2
from services.indexer.model import Failure
from services.indexer.run import Outcome, OutcomeResult, RunCounters, RunMode
from services.indexer.run_spec import IfRunning, RunPriority, RunSpec
from services.indexer.storage.run_create import MOST_WAITING_RUNS
from services.indexer.storage.run_retention import OLD_RUNS, RetentionRules
from services.indexer.storage.run_takeover import NEXT_RUN
from services.indexer.transitions import RunState
from services.runtime.errors import OverloadedError
from tests.integration.hooks import Hook
from tests.integration.indexing import Mode, State, indexing
from tests.integration.oracle import check
from tests.integration.replicas import parsed_file, workspace_with_model
from tests.integration.samples import write_many, write_tree

if TYPE_CHECKING:
    from pathlib import Path

    from services.indexer.run import Run
    from tests.integration.replicas import Replica

_IF = runs_pb2.CreateIndexRunRequest.IfRunning
_QUEUE = IfRunning.QUEUE
_BACKGROUND, _NORMAL, _LIVE, _INTERACTIVE = RunPriority


async def test_runs_behind_one_another_are_taken_one_at_a_time(
    one: Replica, other: Replica
) -> None:
    workspace, _ = await workspace_with_model(one)
    made = [await one.queue(workspace, if_running=_QUEUE) for _ in range(5)]

    done: list[Run] = []
    for _ in made:
        taken = await asyncio.gather(*(each.ledger.take(10) for each in (one, other) * 4))
        (run,) = [run for run in taken if run is not None]
        await (one if taken.index(run) % 2 == 0 else other).ledger.finish(run, None)
        done.append(run)

    assert [run.id for run in done] == [run.id for run in made]


async def test_a_run_that_a_user_waits_for_is_taken_first(one: Replica) -> None:
    """Red with an order of age alone."""
    workspace, _ = await workspace_with_model(one)
    second, _ = await one.workspaces.create("other", workspace.tree, "")
    queued = [
        await one.queue(workspace, if_running=_QUEUE, priority=_BACKGROUND),
        await one.queue(second, if_running=_QUEUE, priority=_NORMAL),
        await one.queue(workspace, if_running=_QUEUE, priority=_INTERACTIVE),
    ]

    taken = [(await one.take()).id, (await one.take()).id]

    assert taken == [queued[2].id, queued[1].id]


async def test_places_may_be_kept_for_what_a_user_waits_for(one: Replica) -> None:
    workspace, _ = await workspace_with_model(one)
    await one.queue(workspace)

    assert await one.ledger.take(10, _INTERACTIVE) is None
    await one.queue(workspace, if_running=_QUEUE, priority=_INTERACTIVE)
    assert await one.ledger.take(10, _INTERACTIVE) is not None


async def test_a_run_learns_that_it_is_to_give_way(one: Replica) -> None:
    workspace, _ = await workspace_with_model(one)
    await one.queue(workspace)
    run = await one.take()
    await one.queue(workspace, if_running=_QUEUE)
    equal = await one.ledger.beat(run)
    await one.queue(workspace, RunMode.SCOPED, _QUEUE, paths=("a",), priority=_INTERACTIVE)

    assert not equal.give_way
    assert (await one.ledger.beat(run)).give_way


async def test_a_run_gives_way_to_none_that_a_paused_one_holds_up(one: Replica) -> None:
    """Red when it gives way whatever waits: it was taken again at once, and began from its scan."""
    workspace, _ = await workspace_with_model(one)
    paused = await one.queue(workspace)
    await one.ledger.request_pause(paused)
    await one.queue(workspace, RunMode.SCOPED, _QUEUE, paths=("a",))
    run = await one.take()
    await one.queue(workspace, if_running=_QUEUE, priority=_INTERACTIVE)

    held_up = await one.ledger.beat(run)
    await one.ledger.request_cancel(paused)

    assert not held_up.give_way
    assert (await one.ledger.beat(run)).give_way


async def test_a_join_takes_the_newest_run_of_its_mode(one: Replica) -> None:
    workspace, _ = await workspace_with_model(one)
    full = await one.queue(workspace, RunMode.FULL)
    await one.queue(workspace, if_running=_QUEUE)
    newest = await one.queue(workspace, if_running=_QUEUE)

    assert (await one.queue(workspace)).id == newest.id
    assert (await one.queue(workspace, RunMode.FULL)).id == full.id
    assert (await one.queue(workspace, RunMode.EMBED_ONLY)).id == newest.id


async def test_nobody_joins_a_run_that_is_being_cancelled(one: Replica) -> None:
    """Red when it covers what is asked: who cancels and begins again got the run that ends."""
    workspace, _ = await workspace_with_model(one)
    cancelled = await one.queue(workspace)
    run = await one.take()
    await one.ledger.request_cancel(run)

    again = await one.queue(workspace)

    assert run.id == cancelled.id != again.id
    assert (await one.queue(workspace)).id == again.id
    assert await one.ledger.take(10) is None, "it waits for the end of the other"
    await one.ledger.finish(run, None)
    assert (await one.take()).id == again.id


async def test_no_more_runs_wait_than_may(one: Replica) -> None:
    workspace, _ = await workspace_with_model(one)
    for _ in range(MOST_WAITING_RUNS):
        await one.queue(workspace, if_running=_QUEUE)

    with pytest.raises(OverloadedError):
        await one.queue(workspace, if_running=_QUEUE)


async def test_a_request_id_is_bound_to_all_that_the_request_says(one: Replica) -> None:
    workspace, _ = await workspace_with_model(one)
    request = uuid.uuid4()
    await one.ledger.create(workspace.id, request, RunSpec(RunMode.SCOPED, paths=("a",)), _QUEUE)

    for spec in (
        RunSpec(RunMode.SCOPED, paths=("b",)),
        RunSpec(RunMode.SCOPED, paths=("a",), node_ids=(1,)),
        RunSpec(RunMode.SCOPED, paths=("a",), priority=_INTERACTIVE),
    ):
        with pytest.raises(Exception, match="another request"):
            await one.ledger.create(workspace.id, request, spec, _QUEUE)


async def test_a_retry_names_the_files_that_failed_and_the_nodes_that_are_left(
    one: Replica,
) -> None:
    workspace, model = await workspace_with_model(one)
    await one.queue(workspace)
    run = await one.take()
    await one.apply(run, model, parsed_file("a.py", "a", "b", "c"))
    claimed = await one.nodes.claim(run, 3)
    failure = Failure("ERROR_REASON_BAD_VECTOR", "never")
    await one.complete(run, model, claimed[:1])
    await one.nodes.fail(run, {claimed[1].id: failure}, claimed, "embed", 1)
    outcomes = [
        Outcome("file", "odd*.py", OutcomeResult.FAILED, "parse", failure=failure),
        Outcome("file", "slow.py", OutcomeResult.TIMEOUT, "parse", failure=failure),
    ]
    await one.ledger.record(run, RunCounters(files_failed=2), outcomes=outcomes)
    await one.ledger.finish_scan(run, {}, ())
    await one.ledger.finish_plan(run)
    await one.ledger.finish(run, None)

    retried, _ = await one.ledger.retry(await one.ledger.get("tree", run.id), uuid.uuid4())
    taken = await one.take()

    assert retried.paths == ("odd\\*.py", "slow.py")
    assert taken.id == retried.id
    assert taken.counters.nodes_total == 2
    assert {node.id for node in await one.nodes.claim(taken, 10)} == {
        claimed[1].id,
        claimed[2].id,
    }


async def test_a_retry_of_a_run_that_broke_off_covers_the_same_again(one: Replica) -> None:
    workspace, _ = await workspace_with_model(one)
    await one.queue(workspace, RunMode.FULL, exclude=("*.md",))
    run = await one.take()
    await one.ledger.finish(run, Failure("ERROR_REASON_INTERNAL", "broke off"))

    retried, _ = await one.ledger.retry(await one.ledger.get("tree", run.id), uuid.uuid4())

    assert (retried.mode, retried.exclude) == (RunMode.FULL, ("*.md",))


async def test_a_bulk_run_gives_way_to_a_scoped_one_and_goes_on(
    roots: Path, sockets: Path, migrated_url: str
) -> None:
    """Red without the wish in the beat: the scoped run ended after the bulk one."""
    hook = Hook()
    write_many(write_tree(roots / "tree") / "bulk", 60)
    async with indexing(
        roots, sockets, migrated_url, embed=hook.app, embed_batch_nodes=4, embed_batches_in_flight=2
    ) as services:
        await services.create("tree", "tree")
        hook.hold()
        bulk = await services.begin("tree")
        await hook.reached.wait()
        await services.wait(bulk, lambda seen: seen.progress.nodes_total_final)
        scoped = await services.begin(
            "tree", Mode.MODE_SCOPED, paths=["db"], if_running=_IF.IF_RUNNING_QUEUE
        )
        await services.wait(bulk, lambda seen: seen.state == State.STATE_RUNNING)
        hook.go_on.set()

        first = await services.wait(scoped)
        last = await services.wait(bulk)

        assert first.state == last.state == State.STATE_SUCCEEDED
        assert first.end_time.ToNanoseconds() < last.end_time.ToNanoseconds()
        assert last.attempt == 1
        assert len(hook.texts) == len(set(hook.texts))
        await check(services, "tree", "tree")


@pytest.mark.parametrize("places", [1, 2])
async def test_runs_in_the_background_leave_a_place_to_others(
    roots: Path, sockets: Path, migrated_url: str, places: int
) -> None:
    """Q7. Red when they take all places: a run of another workspace waited for hours.

    And what a user waits for has its place beyond these.
    """
    hook = Hook()
    names = ["one-", "two-", "three", "four"]
    async with indexing(
        roots, sockets, migrated_url, embed=hook.app, max_concurrent_runs=places
    ) as services:
        for name in names:
            write_tree(roots / name, own_py=f"def {name.strip('-')}():\n    return 1\n")
            await services.create(name, name)
        hook.hold()
        low = runs_pb2.IndexRun.PRIORITY_BACKGROUND
        bulk = [await services.begin(name, priority=low) for name in names[:2]]
        await hook.reached.wait()

        run = await services.begin(names[2])
        await services.wait(run, lambda seen: seen.state == State.STATE_RUNNING, 20)
        scoped = await services.begin(names[3], Mode.MODE_SCOPED, paths=["own.py"])
        await services.wait(scoped, lambda seen: seen.state == State.STATE_RUNNING, 20)

        assert [found.state for found in await services.list_runs(names[1])] == [State.STATE_QUEUED]
        hook.go_on.set()
        ended = [await services.wait(each) for each in (*bulk, run, scoped)]
        assert {each.state for each in ended} == {State.STATE_SUCCEEDED}


async def test_a_second_run_joins_waits_or_fails_as_it_says(
    roots: Path, sockets: Path, migrated_url: str
) -> None:
    hook = Hook()
    write_many(roots / "tree", 10)
    async with indexing(roots, sockets, migrated_url, embed=hook.app) as services:
        await services.create("tree", "tree")
        hook.hold()
        first = await services.begin("tree")
        await hook.reached.wait()

        joined = await services.begin("tree")
        queued = await services.begin("tree", if_running=_IF.IF_RUNNING_QUEUE)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await services.begin("tree", if_running=_IF.IF_RUNNING_FAIL)
        hook.go_on.set()

        assert joined.name == first.name
        assert queued.name != first.name
        assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        second = await services.wait(queued)
        assert second.progress.forwards == 0
        assert second.start_time.ToNanoseconds() >= first.create_time.ToNanoseconds()


async def test_old_runs_are_forgotten_in_bounded_steps_and_the_newest_kept(one: Replica) -> None:
    workspace, _ = await workspace_with_model(one)
    for number in range(4):
        await one.queue(workspace)
        await one.queue(workspace)  # joins
        run = await one.take()
        outcomes = [
            Outcome("file", f"{number}-{i}.py", OutcomeResult.FAILED, "parse") for i in range(9)
        ]
        await one.ledger.record(run, RunCounters(files_failed=9), outcomes=outcomes)
        await one.ledger.finish(run, None)
    await one.value(
        "UPDATE runs SET finished_at = now() - interval '3 days' * (6 - seq) WHERE seq < 5"
    )
    rules = RetentionRules(days=4, runs=2)

    async with one.database.transaction() as connection:
        await connection.fetchval("SELECT pg_try_advisory_xact_lock($1)", 0x10DE_5710)
        assert await one.ledger.forget_old(rules) == 0, "another replica does it at the moment"
    while await one.ledger.forget_old(rules):
        pass

    assert await one.value("SELECT array_agg(seq ORDER BY seq) FROM runs") == [4, 5]
    assert await one.value("SELECT count(*) FROM run_outcomes") == 18
    assert await one.value("SELECT count(*) FROM run_requests") == 2


async def test_what_lists_and_takes_runs_walks_indexes(migrated_url: str, one: Replica) -> None:
    """S8: the ledger of 20,000 runs is read by mode, by state, and by what waits."""
    workspace, _ = await workspace_with_model(one)
    connection = await asyncpg.connect(migrated_url)
    await connection.execute(
        f"""
        INSERT INTO runs (workspace_id, request_id, request_digest, mode, state, phase, started_at,
          finished_at)
        SELECT {workspace.id}, gen_random_uuid(), '', CASE WHEN i % 100 = 0 THEN 'full'
          ELSE 'incremental' END, CASE WHEN i % 50 = 0 THEN 'cancelled' ELSE 'succeeded' END,
          'finished', now() - interval '1 minute' * i, now() - interval '1 minute' * i
        FROM generate_series(1, 20000) i
        """
    )
    await connection.execute("ANALYZE")
    for index, sql in {
        "runs_by_mode": "SELECT * FROM runs WHERE mode = 'full' ORDER BY started_at DESC LIMIT 50",
        "runs_by_state": "SELECT * FROM runs WHERE state = 'cancelled' AND phase = 'finished' "
        "ORDER BY started_at DESC LIMIT 50",
        "runs_unfinished": NEXT_RUN.replace("$1", "0").replace("$2", "0"),
        "runs_finished": OLD_RUNS.replace("$1", "30").replace("$2", "100").replace("$3", "20"),
    }.items():
        rows = await connection.fetch(f"EXPLAIN {sql}")
        plan = "\n".join(row[0] for row in rows)
        assert index in plan, plan
        assert "Seq Scan on runs" not in plan, plan
    await connection.close()


async def test_a_cancelled_queued_run_ends_beside_one_that_is_at_work(one: Replica) -> None:
    """Red when its end gave back the nodes of the workspace: they are the other run's."""
    workspace, model = await workspace_with_model(one)
    await one.queue(workspace)
    run = await one.take()
    await one.apply(run, model, parsed_file("a.py", "a"))
    await one.nodes.claim(run, 1)
    waiting = await one.queue(workspace, if_running=_QUEUE)

    await one.ledger.request_cancel(waiting)

    assert (await one.ledger.get("tree", waiting.id)).state is RunState.CANCELLED
    assert await one.value("SELECT status FROM nodes") == "processing"


async def test_a_run_that_cannot_be_taken_holds_up_no_other(
    roots: Path, sockets: Path, migrated_url: str
) -> None:
    """Red when each look takes up the first one alone: no other was ever worked on."""
    write_tree(roots / "tree")
    async with indexing(roots, sockets, migrated_url) as services:
        await services.create("first", "tree")
        await services.create("second", "tree")
        connection = await asyncpg.connect(services.url)
        first = await connection.fetchval("SELECT id FROM workspaces WHERE name = 'first'")
        await connection.execute(
            f"""
            CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
              $$ BEGIN RAISE EXCEPTION 'broken'; END $$;
            CREATE TRIGGER refuse BEFORE UPDATE OF fence ON runs FOR EACH ROW
              WHEN (NEW.workspace_id = {first}) EXECUTE FUNCTION refuse()
            """
        )
        held_up = await services.begin("first")

        run = await services.run("second")
        again = await services.run("second")
        await connection.execute("DROP TRIGGER refuse ON runs")
        await connection.close()

        assert (run.state, again.state) == (State.STATE_SUCCEEDED, State.STATE_SUCCEEDED)
        assert (await services.wait(held_up)).state == State.STATE_SUCCEEDED
