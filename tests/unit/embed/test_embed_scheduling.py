"""What runs next, how much of it, and what is refused at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from services.embed.admission import Admission
from services.embed.budget import TokenBudget
from services.embed.cost import CostModel
from services.embed.lanes import LaneTurns
from services.embed.model import Embedding, Lane
from services.runtime.errors import OverloadedError
from tests.unit.embed.harness import DOCUMENT, GatedBackend, eventually, served

WEIGHTS = {Lane.INTERACTIVE: 8.0, Lane.BULK: 1.0}


def _served_tokens(turns: LaneTurns, sizes: dict[Lane, int], rounds: int) -> Counter[Lane]:
    """Lets both lanes wait all the time; returns the tokens that each was given."""
    tokens: Counter[Lane] = Counter()
    for _ in range(rounds):
        lane = turns.choose(dict.fromkeys(Lane, 0.0), 0.0)
        turns.charge(lane, sizes[lane])
        tokens[lane] += sizes[lane]
    return tokens


@settings(deadline=None, max_examples=20)
@given(small=st.integers(16, 64), large=st.integers(256, 2048))
def test_lanes_share_tokens_by_weight_whatever_their_batches_are(small: int, large: int) -> None:
    """Red when batches are counted instead of tokens: large batches then take nearly all."""
    turns = LaneTurns(WEIGHTS, max_age_seconds=60)
    sizes = {Lane.INTERACTIVE: small, Lane.BULK: large}
    rounds = 20 * (8 * large // small + 1)

    tokens = _served_tokens(turns, sizes, rounds)

    share = tokens[Lane.INTERACTIVE] / tokens.total()
    assert share == pytest.approx(8 / 9, abs=0.05)


def test_a_lane_that_was_idle_saves_up_no_credit() -> None:
    """Red when clocks do not catch up: bulk then runs alone until it has had as much."""
    turns = LaneTurns(WEIGHTS, max_age_seconds=60)
    for _ in range(1000):
        turns.choose({Lane.INTERACTIVE: 0.0}, 0.0)
        turns.charge(Lane.INTERACTIVE, 100)

    tokens = _served_tokens(turns, dict.fromkeys(Lane, 100), 18)

    assert tokens[Lane.BULK] <= 300


def test_a_batch_that_waited_too_long_goes_next() -> None:
    turns = LaneTurns({Lane.INTERACTIVE: 1000.0, Lane.BULK: 1.0}, max_age_seconds=2.0)
    turns.charge(Lane.BULK, 10_000)

    assert turns.choose({Lane.INTERACTIVE: 9.0, Lane.BULK: 7.5}, 9.0) is Lane.INTERACTIVE
    assert turns.choose({Lane.INTERACTIVE: 9.6, Lane.BULK: 7.5}, 9.6) is Lane.BULK


def test_the_budget_is_halved_at_once_and_comes_back_slowly() -> None:
    budget = TokenBudget(1024)

    budget.shrink(1000)
    halved = budget.tokens
    steps = 0
    while budget.tokens < 1024:
        budget.note_success(budget.tokens)
        steps += 1

    assert halved == 500
    assert steps > 300
    budget.note_success(5000)
    assert budget.tokens == 1024


def test_small_batches_do_not_raise_the_budget() -> None:
    """Red when any batch counts: they say nothing of whether a large one finds memory."""
    budget = TokenBudget(1024)
    budget.shrink(1024)

    for _ in range(1000):
        budget.note_success(10)

    assert budget.tokens == 512


def test_the_budget_never_falls_below_a_short_text() -> None:
    budget = TokenBudget(1024)
    for _ in range(50):
        budget.shrink(2)

    assert budget.tokens == 64


@given(
    overhead=st.floats(0.0, 0.05),
    slope=st.floats(1e-5, 1e-3),
    sizes=st.lists(st.integers(64, 4096), min_size=60, max_size=60),
)
def test_the_cost_model_finds_the_line(overhead: float, slope: float, sizes: list[int]) -> None:
    cost = CostModel()
    for size in (*sizes, *[64, 2048] * 5):
        cost.observe(size, overhead + slope * size)

    largest = max(sizes)
    told = cost.seconds(largest, batch_tokens=largest)
    assert told == pytest.approx(overhead + slope * largest, rel=0.25)
    assert cost.seconds(10 * largest, batch_tokens=largest) == pytest.approx(10 * told, rel=0.01)


def test_forwards_of_one_size_give_a_rate() -> None:
    cost = CostModel()
    for _ in range(500):
        cost.observe(1000, 0.1)

    assert cost.seconds(2000, batch_tokens=1000) == pytest.approx(0.2, rel=0.1)


def _admission() -> Admission:
    """A queue whose model makes 1,000 tokens a second on each of two streams."""
    admission = Admission(max_tokens=100_000, max_bytes=1 << 30, concurrency=2, batch_tokens=1000)
    for _ in range(500):
        admission.note_forward(1000, 1.0)
    return admission


async def test_a_deadline_that_cannot_be_met_is_refused_at_once() -> None:
    """Red when only the size of the queue counts: the text runs, and nobody waits for it."""
    admission = _admission()
    with admission.admit(tokens=20_000, size=1, lane=Lane.BULK):  # ten seconds of work
        with pytest.raises(OverloadedError) as refusal:
            admission.admit(tokens=1000, size=1, lane=Lane.BULK, deadline_seconds=4.0)
        admission.admit(tokens=1000, size=1, lane=Lane.BULK, deadline_seconds=13.0)

    assert refusal.value.retry_after_seconds == pytest.approx(8.0, rel=0.1)


async def test_a_query_passes_bulk_and_so_does_its_deadline() -> None:
    admission = _admission()
    with admission.admit(tokens=50_000, size=1, lane=Lane.BULK):
        with admission.admit(tokens=10, size=1, lane=Lane.INTERACTIVE, deadline_seconds=2.0):
            pass
        with pytest.raises(OverloadedError):
            admission.admit(tokens=10, size=1, lane=Lane.INTERACTIVE, deadline_seconds=0.1)


async def test_who_waits_for_room_is_let_in_in_order_and_is_no_refusal() -> None:
    """Red when all try at once: small groups pass a large one for ever, each try a refusal."""

    def refusals() -> float:
        return REGISTRY.get_sample_value("lodestone_embed_refusals_total", {"reason": "full"}) or 0

    admission = _admission()
    before = refusals()
    held = [admission.admit(tokens=45_000, size=1, lane=Lane.BULK) for _ in range(2)]
    order: list[str] = []

    async def enter(name: str, tokens: int) -> None:
        with await admission.admit_when_room(tokens=tokens, size=1, lane=Lane.BULK):
            order.append(name)

    waiting = [asyncio.create_task(enter("large", 80_000))]
    await asyncio.sleep(0)
    waiting += [asyncio.create_task(enter(f"small {n}", 10)) for n in range(20)]
    for ticket in held:
        ticket.__exit__(None, None, None)
        for _ in range(50):
            await asyncio.sleep(0)
    await asyncio.gather(*waiting)

    assert order[0] == "large"
    assert len(order) == 21
    assert refusals() == before


async def test_an_idle_queue_takes_any_deadline() -> None:
    """The guess may be wrong: whoever comes alone is served."""
    with _admission().admit(tokens=5000, size=1, lane=Lane.BULK, deadline_seconds=0.001):
        pass


async def test_an_expired_call_leaves_before_its_forward() -> None:
    backend = GatedBackend()
    async with served(backend) as model:
        running = asyncio.create_task(model.embed(["first"], DOCUMENT))
        await eventually(backend.entered.is_set)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await model.embed(["late"], replace(DOCUMENT, lane=Lane.INTERACTIVE))
        backend.gate.set()
        (outcome,) = await running

    assert isinstance(outcome, Embedding)
    assert backend.texts_run == 1
