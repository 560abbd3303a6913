"""Time budgets of single items: one that takes too long is told by itself, the others go on."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from services.runtime.errors import DependencyUnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from services.indexer.patience import Patience

Item = TypeVar("Item")
Result = TypeVar("Result")

_TIMED_OUT = "DEADLINE_EXCEEDED"


class _BudgetSpentError(Exception):
    """A call ran out of time though its service answers."""


class ItemBudget:
    """Calls a service for many items; when the time runs out, for halves of them.

    So the item that takes too long stands alone in the end, and is the one to blame. A service that
    does not answer at all is waited for instead: then the time says nothing about the items.

    Args:
        patience: how long the service is waited for.
        probe: a short call; raises DependencyUnavailableError when the service does not answer.
    """

    def __init__(self, patience: Patience, probe: Callable[[], Awaitable[object]]) -> None:
        self._patience = patience
        self._probe = probe

    async def call(
        self,
        items: Sequence[Item],
        work: Callable[[Sequence[Item]], Awaitable[list[Result]]],
        timed_out: Callable[[Item], Result],
    ) -> list[Result]:
        """Returns a result per item, in their order; `work` has a deadline of its own.

        Raises:
            DependencyUnavailableError: the service stayed away for too long.
        """
        try:
            return await self._patience.call(lambda: self._try(items, work))
        except _BudgetSpentError:
            if len(items) == 1:
                return [timed_out(items[0])]
        half = len(items) // 2
        first = await self.call(items[:half], work, timed_out)
        return first + await self.call(items[half:], work, timed_out)

    async def _try(
        self, items: Sequence[Item], work: Callable[[Sequence[Item]], Awaitable[list[Result]]]
    ) -> list[Result]:
        try:
            return await work(items)
        except DependencyUnavailableError as error:
            if error.metadata.get("code") != _TIMED_OUT:
                raise
        await self._probe()
        raise _BudgetSpentError
