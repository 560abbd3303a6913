"""A call that runs out of time is made again for halves; a service that is away is waited for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from services.indexer.budgets import ItemBudget
from services.indexer.patience import Patience
from services.runtime.errors import DependencyUnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence


class _Service:
    """Answers in capitals; never in time with a slow item among those that it is asked for."""

    def __init__(self, slow: str = "", *, alive: bool = True) -> None:
        self.slow = slow
        self.alive = alive
        self.calls: list[list[str]] = []

    async def call(self, items: Sequence[str]) -> list[str]:
        self.calls.append(list(items))
        if not self.alive or self.slow in items:
            raise DependencyUnavailableError(
                "late", metadata={"dependency": "io", "code": "DEADLINE_EXCEEDED"}
            )
        return [item.upper() for item in items]

    async def probe(self) -> None:
        if not self.alive:
            raise DependencyUnavailableError("away", metadata={"dependency": "io"})


async def _call(service: _Service, items: Sequence[str]) -> list[str]:
    budget = ItemBudget(Patience(0.3), service.probe)
    return await budget.call(items, service.call, lambda item: f"{item} timed out")


async def test_an_item_that_takes_too_long_is_told_alone() -> None:
    """Red when the batch fails as a whole."""
    service = _Service(slow="d")

    results = await _call(service, list("abcdefgh"))

    assert results == ["A", "B", "C", "d timed out", "E", "F", "G", "H"]
    assert len(service.calls) == 7


async def test_a_call_in_time_is_one_call() -> None:
    service = _Service()

    assert await _call(service, list("abc")) == ["A", "B", "C"]
    assert len(service.calls) == 1


async def test_a_service_that_is_away_blames_nobody() -> None:
    """Red without the probe: every item was told to have timed out."""
    service = _Service(alive=False)

    with pytest.raises(DependencyUnavailableError):
        await _call(service, list("abc"))
    assert all(call == ["a", "b", "c"] for call in service.calls)
