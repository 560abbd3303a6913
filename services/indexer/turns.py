"""Who claims next, among the runs that this process works on."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from uuid import UUID


@dataclass(order=True)
class _Waiting:
    rank: tuple[int, int]
    """Higher priorities first, then who came first."""

    run_id: UUID = field(compare=False)
    admitted: asyncio.Future[None] = field(compare=False)


class ClaimTurns:
    """Lets a bounded number of batches be in flight, those of the highest priority first.

    Each run may always have one batch in flight, so none stands still for another; the rest goes by
    priority, among equals in the order of asking.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._in_flight: Counter[UUID] = Counter()
        self._waiting: list[_Waiting] = []
        self._numbers = itertools.count()

    @asynccontextmanager
    async def turn(self, run_id: UUID, priority: int) -> AsyncIterator[None]:
        """Yields when a batch of the run may be claimed; it is in flight until the block ends."""
        waiting = _Waiting(
            (-priority, next(self._numbers)), run_id, asyncio.get_running_loop().create_future()
        )
        self._waiting.append(waiting)
        self._admit()
        try:
            await waiting.admitted
        except asyncio.CancelledError:
            self._leave(waiting)
            raise
        try:
            yield
        finally:
            self._end(run_id)

    def _leave(self, waiting: _Waiting) -> None:
        """Takes back a wish; its turn may have come in the moment in which it was cancelled."""
        if waiting in self._waiting:
            self._waiting.remove(waiting)
        elif not waiting.admitted.cancelled():
            self._end(waiting.run_id)

    def _end(self, run_id: UUID) -> None:
        self._in_flight[run_id] -= 1
        if not self._in_flight[run_id]:
            del self._in_flight[run_id]
        self._admit()

    def _admit(self) -> None:
        for waiting in sorted(self._waiting):
            alone = not self._in_flight[waiting.run_id]
            if waiting.admitted.done() or not (alone or self._in_flight.total() < self._capacity):
                continue
            self._waiting.remove(waiting)
            self._in_flight[waiting.run_id] += 1
            waiting.admitted.set_result(None)
