"""The queue of nodes: claims are disjoint, completions fenced, failures bounded."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from services.indexer.attempts import delay_seconds
from services.indexer.model import Failure
from services.indexer.run import OutcomeResult
from tests.integration.oracle import broken_rules
from tests.integration.replicas import (
    content,
    parsed_file,
    workspace_with_model,
)

if TYPE_CHECKING:
    from services.indexer.model import RegisteredModel
    from services.indexer.run import Run
    from tests.integration.replicas import Replica

_RETRYABLE = Failure("ERROR_REASON_OVERLOADED", "later", retryable=True)
_FINAL = Failure("ERROR_REASON_INVALID_UTF8", "never")


async def _running(stores: Replica) -> tuple[Run, RegisteredModel]:
    workspace, model = await workspace_with_model(stores)
    await stores.queue(workspace)
    return await stores.take(), model


async def test_claims_at_once_are_disjoint_and_miss_nothing(one: Replica) -> None:
    run, model = await _running(one)
    await one.apply(run, model, parsed_file("a.py", *(f"t{i}" for i in range(100))))

    claims = await asyncio.gather(*(one.nodes.claim(run, 7) for _ in range(20)))

    claimed = [node.id for claim in claims for node in claim]
    while more := await one.nodes.claim(run, 7):
        claimed += [node.id for node in more]
    assert len(claimed) == len(set(claimed)) == 100


async def test_a_claim_tells_where_the_text_stands(one: Replica) -> None:
    run, model = await _running(one)
    file = parsed_file("a.py", "first", "second")
    await one.apply(run, model, file)

    _, second = await one.nodes.claim(run, 5)

    assert (second.path, second.digest, second.ranges) == ("a.py", file.digest, (10, 20))
    assert second.attempt == 1


async def test_a_completion_with_an_old_fence_writes_no_vector(one: Replica) -> None:
    run, model = await _running(one)
    await one.apply(run, model, parsed_file("a.py", "a"))
    old = await one.nodes.claim(run, 1)
    await one.nodes.release(run, old)
    new = await one.nodes.claim(run, 1)

    assert new[0].fence > old[0].fence
    assert await one.complete(run, model, old) == 0
    assert await one.value("SELECT count(*) FROM node_vectors_m1") == 0
    assert await one.complete(run, model, new) == 1
    await one.ledger.finish(run, None)
    assert await broken_rules(one.database._url) == []


async def test_a_completion_sent_twice_changes_nothing(one: Replica) -> None:
    run, model = await _running(one)
    await one.apply(run, model, parsed_file("a.py", "a"))
    claimed = await one.nodes.claim(run, 1)

    assert await one.complete(run, model, claimed) == 1
    assert await one.complete(run, model, claimed) == 0

    assert await one.value("SELECT count(*) FROM node_vectors_m1") == 1
    await one.ledger.finish(run, None)
    assert await broken_rules(one.database._url) == []


async def test_a_completion_is_all_or_nothing(one: Replica) -> None:
    """A vector of another size than the table's breaks the commit: no term, no status, no cache."""
    run, model = await _running(one)
    await one.apply(run, model, parsed_file("a.py", "a"))
    claimed = await one.nodes.claim(run, 1)
    good = content(claimed[0].content_hash)
    wrong = type(good)(good.content_hash, good.vector * 2, 3, truncated=False, terms={})

    with pytest.raises(Exception, match="cannot be stored"):
        await one.nodes.complete(run, model.id, {good.content_hash: wrong}, claimed, {})

    assert await one.value("SELECT status FROM nodes") == "processing"
    for table in ("node_vectors_m1", "node_terms", "embedding_cache", "content_terms"):
        assert await one.value(f"SELECT count(*) FROM {table}") == 0


async def test_twins_share_one_vector_and_count_as_reused(one: Replica) -> None:
    run, model = await _running(one)
    await one.apply(run, model, parsed_file("a.py", "same", "same"), parsed_file("b.py", "same"))

    await one.complete(run, model, await one.nodes.claim(run, 5))

    counters = (await one.ledger.get("tree", run.id)).counters
    assert (counters.forwards, counters.nodes_embedded, counters.nodes_reused) == (1, 1, 2)
    assert await one.value("SELECT count(*) FROM node_vectors_m1") == 3


async def test_a_failure_that_may_pass_is_tried_again_after_a_wait(one: Replica) -> None:
    run, model = await _running(one)
    await one.apply(run, model, parsed_file("a.py", "a"))
    claimed = await one.nodes.claim(run, 1)

    given_up = await one.nodes.fail(run, {claimed[0].id: _RETRYABLE}, claimed, "embed", 2)

    wait_seconds = (await one.nodes.outlook(run)).wait_seconds
    assert given_up == 0
    assert await one.nodes.claim(run, 1) == []
    assert wait_seconds is not None
    assert 0 < wait_seconds < 3
    assert await one.ledger.outcomes(run, ("failed", "timeout", "stale"), ("", "", 0), 10) == []


async def test_a_node_waits_longer_after_each_attempt_by_the_clock_of_the_database(
    one: Replica,
) -> None:
    """Red with a delay that is not written, or counted from another clock than that of claims."""
    run, model = await _running(one)
    await one.apply(run, model, parsed_file("a.py", "a"))
    waits, wanted = [], []
    for _ in range(4):
        await one.value("UPDATE nodes SET available_at = now()")
        claimed = await one.nodes.claim(run, 1)
        await one.nodes.fail(run, {claimed[0].id: _RETRYABLE}, claimed, "embed", 9)
        waits.append(
            await one.value(
                "SELECT extract(epoch FROM available_at - status_since)::float8 FROM nodes"
            )
        )
        wanted.append(delay_seconds(claimed[0], _RETRYABLE))

    assert waits == pytest.approx(wanted)
    assert wanted == sorted(set(wanted))


async def test_attempts_are_bounded_and_the_last_is_listed(one: Replica) -> None:
    run, model = await _running(one)
    await one.apply(run, model, parsed_file("a.py", "a"))
    for _ in range(2):
        await one.value("UPDATE nodes SET available_at = now()")
        claimed = await one.nodes.claim(run, 1)
        await one.nodes.fail(run, {claimed[0].id: _RETRYABLE}, claimed, "embed", 2)

    (outcome,) = await one.ledger.outcomes(run, ("failed", "timeout", "stale"), ("", "", 0), 10)

    assert (outcome.result, outcome.attempts) == (OutcomeResult.FAILED, 2)
    assert outcome.failure is not None
    assert outcome.failure.reason == _RETRYABLE.reason
    assert (await one.nodes.outlook(run)).wait_seconds is None
    await one.ledger.finish(run, None)
    assert await broken_rules(one.database._url) == []


async def test_a_failure_that_cannot_pass_is_not_tried_again(one: Replica) -> None:
    run, model = await _running(one)
    await one.apply(run, model, parsed_file("a.py", "a", "b"))
    claimed = await one.nodes.claim(run, 2)

    assert await one.nodes.fail(run, {claimed[0].id: _FINAL}, claimed, "fetch", 5) == 1

    assert await one.value("SELECT status FROM nodes WHERE id = $1", claimed[1].id) == "processing"


async def test_a_node_that_stops_three_workers_ends_failed(one: Replica) -> None:
    run, model = await _running(one)
    await one.apply(run, model, parsed_file("a.py", "a"))
    for _ in range(3):
        assert len(await one.nodes.claim(run, 1)) == 1
        await one.value("UPDATE runs SET lease_until = now() - interval '1 s' WHERE owner = owner")
        run = await one.take()

    assert await one.nodes.claim(run, 1) == []
    await one.ledger.finish(run, None)
    (outcome,) = await one.ledger.outcomes(run, ("failed", "timeout", "stale"), ("", "", 0), 10)
    assert outcome.failure is not None
    assert outcome.failure.reason == "ERROR_REASON_WORKER_DIED"
    assert await broken_rules(one.database._url) == []


async def test_the_next_run_tries_again_what_may_have_passed(one: Replica) -> None:
    run, model = await _running(one)
    await one.apply(run, model, parsed_file("a.py", "a", "b"))
    claimed = await one.nodes.claim(run, 2)
    failures = {claimed[0].id: _RETRYABLE, claimed[1].id: _FINAL}
    await one.nodes.fail(run, failures, claimed, "embed", 1)
    await one.ledger.finish(run, None)
    await one.queue(await one.workspaces.get("tree"))

    run = await one.take()

    assert [node.id for node in await one.nodes.claim(run, 5)] == [claimed[0].id]


async def test_what_the_cache_holds_is_adopted_by_a_claim(one: Replica) -> None:
    """As when two files with one text are planned while neither has been embedded."""
    run, model = await _running(one)
    await one.apply(run, model, parsed_file("a.py", "same"), parsed_file("b.py", "same", "other"))
    first, second, third = await one.nodes.claim(run, 5)
    await one.complete(run, model, [first])

    left = await one.nodes.adopt(run, model.id, [second, third])

    assert left == {third.id}
    await one.ledger.finish(run, None)
    assert await broken_rules(one.database._url) == []


async def test_a_run_that_was_given_back_tries_no_failed_node_again(one: Replica) -> None:
    """Only a new run does: otherwise each restart of a replica would grant all attempts anew."""
    run, model = await _running(one)
    await one.apply(run, model, parsed_file("a.py", "a"))
    claimed = await one.nodes.claim(run, 1)
    await one.nodes.fail(run, {claimed[0].id: _RETRYABLE}, claimed, "embed", 1)
    await one.ledger.release(run)

    run = await one.take()

    assert await one.nodes.claim(run, 1) == []
    assert await one.value("SELECT status FROM nodes") == "failed"
