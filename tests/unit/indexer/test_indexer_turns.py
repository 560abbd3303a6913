"""Turns to claim: bounded, by priority, and no run stands still for another."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING

from services.indexer.turns import ClaimTurns

if TYPE_CHECKING:
    from uuid import UUID


class _Batch:
    """A batch that is in flight from its turn until it is told to end."""

    def __init__(self, turns: ClaimTurns, run: UUID, priority: int) -> None:
        self.begun = asyncio.Event()
        self.end = asyncio.Event()
        self.task = asyncio.create_task(self._work(turns, run, priority))

    async def _work(self, turns: ClaimTurns, run: UUID, priority: int) -> None:
        async with turns.turn(run, priority):
            self.begun.set()
            await self.end.wait()


async def _settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def _finish(*batches: _Batch) -> None:
    for batch in batches:
        batch.end.set()
        await batch.task


async def test_no_more_batches_of_a_run_are_in_flight_than_may() -> None:
    turns, run = ClaimTurns(2), uuid.uuid4()
    batches = [_Batch(turns, run, 2) for _ in range(4)]
    await _settle()

    assert [batch.begun.is_set() for batch in batches] == [True, True, False, False]
    await _finish(batches[0])
    await _settle()
    assert batches[2].begun.is_set()
    await _finish(*batches[1:])


async def test_a_free_place_goes_to_the_higher_priority() -> None:
    """Red with an order of asking alone."""
    turns, bulk, urgent = ClaimTurns(3), uuid.uuid4(), uuid.uuid4()
    working = [_Batch(turns, bulk, 2) for _ in range(3)]
    await _settle()
    waiting = [_Batch(turns, bulk, 2), _Batch(turns, urgent, 3), _Batch(turns, urgent, 3)]
    await _settle()
    assert [batch.begun.is_set() for batch in waiting] == [False, True, False], "one is always free"

    await _finish(*working[:2])
    await _settle()

    assert [batch.begun.is_set() for batch in waiting] == [False, True, True]
    await _finish(working[2], waiting[1], waiting[2], waiting[0])


async def test_a_run_of_the_lowest_priority_always_has_one_batch() -> None:
    turns, bulk, urgent = ClaimTurns(1), uuid.uuid4(), uuid.uuid4()
    first = _Batch(turns, urgent, 3)
    more = [_Batch(turns, urgent, 3) for _ in range(3)]
    slow = _Batch(turns, bulk, 1)
    await _settle()

    assert slow.begun.is_set()
    await _finish(first, slow, *more)


async def test_who_is_cancelled_while_it_waits_takes_no_turn() -> None:
    turns, run = ClaimTurns(1), uuid.uuid4()
    first, second, third = (_Batch(turns, run, 2) for _ in range(3))
    await _settle()
    second.task.cancel()
    await _settle()

    await _finish(first)
    await _settle()

    assert third.begun.is_set()
    await _finish(third)


async def test_a_turn_that_comes_in_the_moment_of_the_cancel_goes_to_the_next() -> None:
    """Red when the turn is kept by a task that is gone: the third one never began."""
    turns, run = ClaimTurns(1), uuid.uuid4()
    held = turns.turn(run, 2)
    await held.__aenter__()
    second, third = _Batch(turns, run, 2), _Batch(turns, run, 2)
    await _settle()

    await held.__aexit__(None, None, None)  # gives the second its turn before it can see that
    second.task.cancel()
    await _settle()

    assert not second.begun.is_set()
    assert third.begun.is_set()
    await _finish(third)
