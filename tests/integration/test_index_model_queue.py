"""The queue of a model beside the active one, step by step: claims, fences, crashes, a switch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from prometheus_client import REGISTRY

from services.indexer.errors import RunOwnershipLostError
from services.indexer.model import Failure
from services.indexer.run import RunMode
from services.indexer.run_spec import IfRunning, RunPriority
from services.indexer.storage.run_retention import RetentionRules
from services.runtime.errors import StateConflictError
from tests.integration.oracle import broken_rules
from tests.integration.replicas import MODEL, Replica, parsed_file, workspace_with_model

if TYPE_CHECKING:
    from services.indexer.model import RegisteredModel, Workspace
    from services.indexer.run import Run

_SECOND = replace(MODEL, name="models/second", fingerprint="a" * 64, dimensions=8)
_EXPIRE = "UPDATE runs SET lease_until = now() - interval '1 s' WHERE owner IS NOT NULL"
_REMOVED = "lodestone_indexer_upkeep_rows_total"
_FINAL = Failure("ERROR_REASON_INVALID_REQUEST", "no")


async def _two(stores: Replica, *texts: str) -> tuple[Workspace, RegisteredModel, RegisteredModel]:
    """Returns a workspace that is embedded with the first model and waits for the second."""
    workspace, first = await workspace_with_model(stores)
    await stores.queue(workspace)
    run = await stores.take()
    await stores.apply(run, first, parsed_file("a.py", *texts))
    await stores.complete(run, first, await stores.nodes.claim(run, 99))
    await stores.ledger.finish(run, None)
    second = await stores.workspaces.register_model(_SECOND)
    await stores.models.add(workspace, second)
    return await stores.workspaces.get("tree"), first, second


async def _rules(stores: Replica) -> list[str]:
    return await broken_rules(stores.database._url)


async def _edit(stores: Replica, workspace: Workspace, model: RegisteredModel, *texts: str) -> Run:
    """Returns a run over files that is at work, having cut a file into new nodes."""
    await stores.queue(workspace, if_running=IfRunning.QUEUE)
    run = await stores.take()
    assert run.model_id is None
    await stores.apply(run, model, parsed_file("b.py", *texts))
    return run


async def test_an_added_model_queues_one_run_of_low_priority(one: Replica) -> None:
    workspace, _, second = await _two(one, "a", "b")
    await one.models.add(workspace, second)

    run = await one.take()

    assert (run.model_id, run.mode, run.priority) == (
        second.id,
        RunMode.EMBED_ONLY,
        RunPriority.BACKGROUND,
    )
    assert (run.counters.nodes_total, run.counters.nodes_pending) == (2, 2)
    assert await one.ledger.take(10) is None
    assert await _rules(one) == []


async def test_a_paused_run_of_a_model_holds_up_no_run_over_files(one: Replica) -> None:
    """Red when it holds up what is not its work: nothing was indexed until it was resumed."""
    workspace, first, second = await _two(one, "a", "b")
    paused = await one.take()
    await one.ledger.request_pause(paused)
    await one.ledger.release(paused)
    low = {"priority": RunPriority.BACKGROUND, "model_id": second.id}
    await one.queue(workspace, RunMode.EMBED_ONLY, IfRunning.QUEUE, **low)

    run = await _edit(one, workspace, first, "c")

    await one.ledger.finish(run, None)
    assert await one.ledger.take(10) is None, "the model's other run waits behind the paused one"
    await one.ledger.request_resume(paused)
    assert (await one.take()).id == paused.id


async def test_a_model_that_is_added_while_its_run_is_cancelled_has_another(one: Replica) -> None:
    """Red when a run that is being cancelled counts as one that embeds what waits."""
    workspace, _, second = await _two(one, "a", "b")
    run = await one.take()
    await one.ledger.request_cancel(run)

    await one.models.add(workspace, second)
    await one.models.add(workspace, second)
    await one.ledger.finish(run, None)

    assert (await one.take()).model_id == second.id
    assert await one.value("SELECT count(*) FROM runs WHERE finished_at IS NULL") == 1


async def test_a_late_commit_of_another_owner_changes_nothing(one: Replica, other: Replica) -> None:
    """Red with a completion that deletes rows whatever their fence."""
    _, _, second = await _two(one, "a", "b")
    lost = await one.take()
    claimed = await one.model_nodes.claim(lost, 1)
    await one.value(_EXPIRE)
    run = await other.take()
    (again, *_) = await other.model_nodes.claim(run, 9)

    with pytest.raises(RunOwnershipLostError):
        await one.complete(lost, second, claimed)
    stale = await other.complete(run, second, claimed)

    assert again.id == claimed[0].id
    assert again.fence > claimed[0].fence
    assert stale == 0
    assert await one.value("SELECT count(*) FROM node_vectors_m2") == 0
    assert await one.model_nodes.claim(lost, 9) == []
    assert await _rules(one) == []


async def test_a_model_run_taken_over_counts_what_both_owners_did(
    one: Replica, other: Replica
) -> None:
    _, _, second = await _two(one, "a", "b", "c")
    lost = await one.take()
    await one.complete(lost, second, await one.model_nodes.claim(lost, 1))
    await one.model_nodes.claim(lost, 1)
    await one.value(_EXPIRE)

    run = await other.take()
    await other.complete(run, second, await other.model_nodes.claim(run, 9))
    state = await other.ledger.finish(run, None)

    counters = (await one.ledger.get("tree", run.id)).counters
    assert state == "succeeded"
    assert (counters.nodes_total, counters.nodes_embedded, counters.nodes_reused) == (3, 3, 0)
    assert await _rules(one) == []


async def test_a_node_that_kills_its_workers_ends_failed_for_the_model_alone(one: Replica) -> None:
    await _two(one, "a")
    for _ in range(3):
        run = await one.take()
        await one.model_nodes.claim(run, 1)
        await one.value(_EXPIRE)

    await one.ledger.finish(await one.take(), None)

    assert await one.value("SELECT (status, error_reason)::text FROM model_nodes") == (
        "(failed,ERROR_REASON_WORKER_DIED)"
    )
    assert await one.value("SELECT status FROM nodes") == "embedded"
    assert await one.value("SELECT count(*) FROM run_outcomes WHERE result = 'failed'") == 1
    assert await _rules(one) == []


async def test_a_node_that_goes_takes_its_place_in_every_queue_along(one: Replica) -> None:
    """Red when removed nodes stay in the queue of a model."""
    workspace, first, second = await _two(one, "a", "b")
    held = await one.take()
    claimed = await one.model_nodes.claim(held, 9)
    await one.ledger.release(held)
    edit = await _edit(one, workspace, first)
    await one.apply(edit, first, parsed_file("a.py", "a"))
    await one.ledger.finish(edit, None)
    again = await one.take()

    with pytest.raises(RunOwnershipLostError):
        await one.complete(held, second, claimed)
    ended = await one.complete(again, second, await one.model_nodes.claim(again, 9))

    assert ended == 1
    assert await one.value("SELECT count(*) FROM model_nodes") == 0
    assert await one.value("SELECT count(*) FROM node_vectors_m2") == 1
    await one.ledger.finish(again, None)
    assert (await one.models.get(workspace, second.id)).nodes_embedded == 1
    assert await _rules(one) == []


async def test_a_run_over_files_leaves_a_run_for_each_model_that_waits(one: Replica) -> None:
    workspace, first, second = await _two(one, "a")
    run = await one.take()
    await one.complete(run, second, await one.model_nodes.claim(run, 9))
    await one.ledger.finish(run, None)
    assert await one.ledger.take(10) is None

    edit = await _edit(one, workspace, first, "new")
    await one.complete(edit, first, await one.nodes.claim(edit, 9))
    await one.ledger.finish(edit, None)

    follows = await one.take()
    assert follows.model_id == second.id
    assert [node.qualified_name for node in await one.model_nodes.claim(follows, 9)] == ["new"]
    await one.ledger.finish(follows, Failure("ERROR_REASON_MODEL_NOT_LOADED", "gone"))
    assert await one.ledger.take(10) is None, "a model that fails does not begin again by itself"
    assert await _rules(one) == []


async def test_a_switch_exchanges_what_the_models_lack(one: Replica) -> None:
    """`a` failed with the first, `b` with the second, `c` waits for the first, `d` has both.

    Red when nodes that only the old model had keep their status, or their terms.
    """
    workspace, first, second = await _two(one, "d")
    run = await _edit(one, workspace, first, "a", "b", "c")
    a, b = await one.nodes.claim(run, 2)
    await one.nodes.fail(run, {a.id: _FINAL}, [a], "embed", 1)
    await one.complete(run, first, [b])
    await one.ledger.finish(run, None)
    beside = await one.take()
    claimed = await one.model_nodes.claim(beside, 9)
    await one.model_nodes.fail(
        beside, {n.id: _FINAL for n in claimed if n.qualified_name == "b"}, claimed, "embed", 1
    )
    ready = [node for node in claimed if node.qualified_name != "b"]
    await one.complete(beside, second, ready)
    await one.ledger.finish(beside, None)
    assert await _rules(one) == []

    with pytest.raises(StateConflictError, match="lose 1 nodes"):
        await one.models.activate(workspace, second.id, force=False)
    await one.models.activate(workspace, second.id, force=True)

    names = "SELECT string_agg(qualified_name || '=' || status, ' ' ORDER BY qualified_name)"
    assert await one.value(f"{names} FROM nodes") == "a=embedded b=pending c=embedded d=embedded"
    assert (
        await one.value(
            f"{names} FROM (SELECT n.qualified_name, q.status FROM model_nodes q "
            "JOIN nodes n ON n.id = q.node_id) q"
        )
        == "a=failed c=pending"
    )
    assert await _rules(one) == []
    back = await one.take()
    assert (back.model_id, back.mode) == (None, RunMode.EMBED_ONLY)
    await one.complete(back, second, await one.nodes.claim(back, 9))
    await one.ledger.finish(back, None)
    assert await _rules(one) == []


async def test_a_run_at_work_is_refused_after_a_switch_and_begins_again(one: Replica) -> None:
    """Red when the switch leaves the run its fence: its vectors would be of the old model."""
    workspace, first, second = await _two(one, "a")
    beside = await one.take()
    await one.complete(beside, second, await one.model_nodes.claim(beside, 9))
    await one.ledger.finish(beside, None)
    run = await _edit(one, workspace, first, "x")
    claimed = await one.nodes.claim(run, 9)

    await one.models.activate(workspace, second.id, force=False)

    with pytest.raises(RunOwnershipLostError):
        await one.complete(run, first, claimed)
    again = await one.take()
    assert (again.id, again.attempt) == (run.id, 1)
    await one.complete(again, second, await one.nodes.claim(again, 9))
    await one.ledger.finish(again, None)
    assert await one.value("SELECT count(*) FROM node_vectors_m2") == 2
    assert await _rules(one) == []


async def test_what_is_cached_of_a_model_goes_when_it_was_removed_for_long(one: Replica) -> None:
    workspace, _, second = await _two(one, "a", "b")
    run = await one.take()
    await one.complete(run, second, await one.model_nodes.claim(run, 9))
    await one.models.remove(workspace, second.id)
    rules = RetentionRules(days=30, runs=100)

    assert await one.ledger.forget_old(rules) == 0
    await one.value("UPDATE models SET released_at = now() - interval '31 days' WHERE id = 2")
    before = REGISTRY.get_sample_value(_REMOVED) or 0.0
    assert await one.ledger.forget_old(rules) == 2
    assert REGISTRY.get_sample_value(_REMOVED) == before + 2
    assert await one.ledger.forget_old(rules) == 0

    assert await one.value("SELECT string_agg(model_id::text, ' ') FROM embedding_cache") == "1 1"
    assert await _rules(one) == []
