"""Packing: every text in exactly one batch, budgets kept, little padding, nobody starves."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from services.embed.packing import PackingQueue, choose_slice

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=200)


@dataclass(frozen=True, slots=True)
class Item:
    tokens: int
    serial: int
    route: str = ""
    caller: str = ""


def _queue(lengths: list[int], window_tokens: int = sys.maxsize) -> PackingQueue[Item]:
    queue: PackingQueue[Item] = PackingQueue(window_tokens=window_tokens)
    for serial, tokens in enumerate(lengths):
        queue.add(Item(tokens, serial))
    return queue


@given(LENGTHS, st.integers(1, 2048), st.integers(1, 64))
def test_every_text_is_in_exactly_one_batch_and_every_batch_keeps_its_limits(
    lengths: list[int], budget: int, most: int
) -> None:
    queue = _queue(lengths)

    seen = []
    while batch := queue.take(token_budget=budget, max_items=most):
        assert len(batch) <= most
        padded = max(item.tokens for item in batch) * len(batch)
        assert padded <= budget or len(batch) == 1
        seen += batch

    assert sorted(item.serial for item in seen) == list(range(len(lengths)))
    assert len(queue) == queue.tokens == 0


@given(LENGTHS, st.integers(1, 2048), st.integers(1, 4096))
def test_a_batch_is_packed_from_the_oldest_texts_of_the_window(
    lengths: list[int], budget: int, window: int
) -> None:
    """Red without the window: of a long queue the last texts may go with the first ones."""
    queue = _queue(lengths, window)
    waiting = dict(enumerate(lengths))

    while batch := queue.take(token_budget=budget, max_items=64):
        newest = max(item.serial for item in batch)
        before = sum(tokens for serial, tokens in waiting.items() if serial < newest)
        assert before < window or len(batch) == 1
        assert min(waiting) in {item.serial for item in batch}
        for item in batch:
            del waiting[item.serial]
        assert queue.tokens == sum(waiting.values())
        assert len(queue) == len(waiting)

    assert not waiting


def test_a_text_beyond_the_window_can_be_discarded() -> None:
    queue = _queue([10, 20, 30], window_tokens=5)

    queue.discard(Item(20, 1))

    assert (len(queue), queue.tokens) == (2, 40)
    order = [queue.take(token_budget=100, max_items=8)[0].serial for _ in range(2)]
    assert order == [0, 2]


@given(LENGTHS, st.integers(1, 2048), st.integers(1, 64))
def test_each_batch_holds_the_text_that_waited_longest(
    lengths: list[int], budget: int, most: int
) -> None:
    queue = _queue(lengths)
    waiting = set(range(len(lengths)))

    while batch := queue.take(token_budget=budget, max_items=most):
        serials = {item.serial for item in batch}
        assert min(waiting) in serials
        waiting -= serials


@given(LENGTHS, st.data())
def test_the_chosen_slice_cannot_grow(lengths: list[int], data: st.DataObject) -> None:
    """A slice that leaves room for a neighbour wastes a forward."""
    lengths = sorted(lengths)
    anchor = data.draw(st.integers(0, len(lengths) - 1))
    low, high = choose_slice(lengths, anchor, token_budget=600, max_items=1000)

    assert low <= anchor < high
    if low > 0:
        assert lengths[high - 1] * (high - low + 1) > 600
    if high < len(lengths):
        assert lengths[high] * (high - low + 1) > 600


def test_neighbours_in_length_share_a_batch() -> None:
    queue = _queue([10, 200, 11, 199, 12, 198])

    first = queue.take(token_budget=600, max_items=3)
    second = queue.take(token_budget=600, max_items=3)

    assert sorted(item.tokens for item in first) == [10, 11, 12]
    assert sorted(item.tokens for item in second) == [198, 199, 200]


def test_a_text_above_the_budget_goes_alone() -> None:
    queue = _queue([5000, 10])

    assert [item.tokens for item in queue.take(token_budget=1024, max_items=8)] == [5000]
    assert [item.tokens for item in queue.take(token_budget=1024, max_items=8)] == [10]


def test_a_discarded_text_is_gone_and_counts_no_more() -> None:
    queue = _queue([10, 20])

    queue.discard(Item(10, 0))
    queue.discard(Item(10, 0))

    assert queue.tokens == 20
    assert [item.serial for item in queue.take(token_budget=100, max_items=8)] == [1]


@given(
    st.lists(st.tuples(st.integers(1, 300), st.sampled_from(["document", "query"])), min_size=1),
    st.integers(1, 2048),
    st.integers(1, 64),
)
def test_a_batch_takes_one_route_and_holds_the_oldest(
    texts: list[tuple[int, str]], budget: int, most: int
) -> None:
    """Red when texts are sorted by length alone: neighbours of the other route come along."""
    queue: PackingQueue[Item] = PackingQueue()
    for serial, (tokens, route) in enumerate(texts):
        queue.add(Item(tokens, serial, route))

    waiting = set(range(len(texts)))
    while batch := queue.take(token_budget=budget, max_items=most):
        assert len({item.route for item in batch}) == 1
        assert min(waiting) in {item.serial for item in batch}
        waiting -= {item.serial for item in batch}
    assert not waiting


@given(LENGTHS, st.integers(1, 2048), st.integers(1, 64))
def test_without_padding_a_batch_takes_what_its_tokens_sum_to(
    lengths: list[int], budget: int, most: int
) -> None:
    """Red when padding is counted where there is none: batches are smaller than they could be."""
    queue: PackingQueue[Item] = PackingQueue(padded=False)
    for serial, tokens in enumerate(lengths):
        queue.add(Item(tokens, serial))

    seen = []
    while batch := queue.take(token_budget=budget, max_items=most):
        total = sum(item.tokens for item in batch)
        assert total <= budget or len(batch) == 1
        rest = [tokens for *_, left in queue._by_length if (tokens := left.tokens)]
        if rest and len(batch) < most:
            longest = max(item.tokens for item in batch)
            above = [tokens for tokens in rest if tokens >= longest]
            assert not above or total + min(above) > budget
        seen += batch

    assert sorted(item.serial for item in seen) == list(range(len(lengths)))
