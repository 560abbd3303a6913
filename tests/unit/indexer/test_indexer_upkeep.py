"""A task of upkeep goes on whatever its steps do, and its metrics tell how they ended."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from prometheus_client import REGISTRY

from services.indexer import metrics
from services.indexer.upkeep import Upkeep
from services.runtime.errors import DependencyUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

_TASK = "term_index"
_AWAY = DependencyUnavailableError("The database does not answer.")
_OUTCOMES = ("done", "nothing", "unavailable", "failed")


class _Steps:
    """Steps that end as told, one after the other; the last of them waits for ever."""

    def __init__(self, ends: Sequence[int | Exception]) -> None:
        self._ends = list(ends)
        self.over = asyncio.Event()

    async def step(self) -> int:
        """Ends as the next one is told to."""
        if not self._ends:
            self.over.set()
            await asyncio.Event().wait()
        end = self._ends.pop(0)
        if isinstance(end, Exception):
            raise end
        return end


def _steps_of(outcome: str) -> float:
    labels = {"task": _TASK, "outcome": outcome}
    return REGISTRY.get_sample_value("lodestone_indexer_upkeep_steps_total", labels) or 0.0


def _last_success() -> float:
    name = "lodestone_indexer_upkeep_last_success_timestamp_seconds"
    return REGISTRY.get_sample_value(name, {"task": _TASK}) or 0.0


@asynccontextmanager
async def _after(*ends: int | Exception) -> AsyncIterator[None]:
    """Runs steps to the last of them."""
    steps = _Steps(ends)
    upkeep = Upkeep(_TASK, steps.step, 0.001)
    upkeep.start()
    metrics.UPKEEP_SUCCESS.labels(_TASK).set(1.0)
    async with asyncio.timeout(10):
        await steps.over.wait()
    yield
    await upkeep.stop()


async def test_each_step_is_counted_by_how_it_ended_and_the_next_one_comes() -> None:
    """Red with an error that ends the task, and with one outcome for all that did not go well."""
    before = [_steps_of(outcome) for outcome in _OUTCOMES]

    async with _after(2, 0, _AWAY, ValueError("a bug"), 0, ValueError("again")):
        grown = [_steps_of(each) - old for each, old in zip(_OUTCOMES, before, strict=True)]

    assert grown == [1, 2, 1, 2]


@pytest.mark.parametrize("end", [1, 0])
async def test_a_step_that_went_well_is_a_success(end: int) -> None:
    """Red with the time of steps alone that did something."""
    async with _after(end):
        assert _last_success() > 1.0


@pytest.mark.parametrize("end", [_AWAY, ValueError("a bug")])
async def test_a_task_is_late_since_its_last_step_that_went_well(end: Exception) -> None:
    """Red with the time of each step, however it ended."""
    async with _after(end):
        assert _last_success() == 1.0


async def test_a_task_that_begins_is_not_late() -> None:
    """Red without a time at the start: a first step that hangs would be late since 1970."""
    steps = _Steps([])
    upkeep = Upkeep(_TASK, steps.step, 1.0)
    metrics.UPKEEP_SUCCESS.labels(_TASK).set(1.0)

    upkeep.start()
    await steps.over.wait()

    assert _last_success() > 1.0
    await upkeep.stop()


async def test_the_rows_of_retention_are_not_those_of_other_tasks() -> None:
    """Red with a counter of rows that grows by each index that is built."""
    name = "lodestone_indexer_upkeep_rows_total"
    before = REGISTRY.get_sample_value(name)

    async with _after(3):
        pass

    assert REGISTRY.get_sample_value(name) == before
