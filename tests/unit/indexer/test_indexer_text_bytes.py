"""Texts in flight: bounded in bytes, in the order of asking, and nothing is lost by who leaves."""

from __future__ import annotations

import asyncio
import random

from services.indexer.model import ClaimedNode, NodeId
from services.indexer.text_bytes import TextBudget, text_bytes


def _node(number: int, *ranges: int) -> ClaimedNode:
    return ClaimedNode(NodeId(number), 1, 1, b"", "a.py", b"", "f", ranges)


def _of(size: int) -> ClaimedNode:
    return _node(size, 10, 10 + size)


async def _settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_pieces_of_a_node_are_added_up() -> None:
    assert text_bytes([_node(1, 0, 10, 50, 55), _of(7)]) == 22


def test_parts_keep_the_order_and_none_is_larger_than_may_be_unless_it_is_one_text() -> None:
    """Red when a text is left out, or put where it does not fit any more."""
    sizes = [40, 60, 1, 250, 99, 2, 0, 100]

    parts = list(TextBudget(100).parts([_of(size) for size in sizes]))

    assert [[text_bytes([node]) for node in part] for part in parts] == [
        [40, 60],
        [1],
        [250],
        [99],
        [2, 0],
        [100],
    ]


async def test_no_more_bytes_are_held_than_may_be_and_all_get_their_turn() -> None:
    budget, draw = TextBudget(100), random.Random(7)
    held = most = done = 0

    async def work(size: int) -> None:
        nonlocal held, most, done
        async with budget.hold([_of(size)]):
            held += size
            most = max(most, held)
            for _ in range(draw.randrange(4)):
                await asyncio.sleep(0)
            held -= size
            done += 1

    await asyncio.gather(*(work(draw.randrange(1, 101)) for _ in range(500)))

    assert (done, held) == (500, 0)
    assert 50 < most <= 100


async def test_a_text_longer_than_all_that_may_be_held_goes_alone() -> None:
    """Red when it waits for room that never comes."""
    budget, order = TextBudget(100), []

    async def work(size: int) -> None:
        async with budget.hold([_of(size)]):
            order.append(size)
            await _settle()
            order.append(-size)

    await asyncio.wait_for(asyncio.gather(work(10), work(5000), work(20)), 5)

    assert order == [10, -10, 5000, -5000, 20, -20]


async def test_who_is_cancelled_gives_its_place_up() -> None:
    """Red when a cancelled wish keeps others waiting, or its bytes."""
    budget = TextBudget(100)
    ended: list[int] = []

    async def work(size: int) -> None:
        async with budget.hold([_of(size)]):
            ended.append(size)

    async with budget.hold([_of(60)]):
        large = asyncio.create_task(work(90))
        await _settle()
        small = asyncio.create_task(work(30))
        await _settle()
        assert ended == [], "the first comes first"
        large.cancel()
        await asyncio.wait_for(small, 5)
        admitted = asyncio.create_task(work(70))
        await _settle()
    admitted.cancel()  # its turn has just come
    await asyncio.gather(large, admitted, return_exceptions=True)
    await asyncio.wait_for(work(100), 5)

    assert ended == [30, 100]


async def test_who_is_cancelled_while_room_comes_takes_none_of_it() -> None:
    """Red when a wish whose task is about to end is granted: it fails who made the room."""
    budget = TextBudget(100)

    async def work(size: int) -> None:
        async with budget.hold([_of(size)]):
            pass

    async with budget.hold([_of(60)]):
        waiting = asyncio.create_task(work(90))
        await _settle()
        waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)

    await asyncio.wait_for(work(100), 5)
    assert waiting.cancelled()
