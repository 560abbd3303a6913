"""The wish that a run's work ends, as its tasks see it."""

from __future__ import annotations

import asyncio
from enum import IntEnum


class StopReason(IntEnum):
    """Why the work is to end; the larger reason wins."""

    GIVE_WAY = 1
    PAUSE = 2
    CANCEL = 3


class StopSignal:
    """Tells the tasks of one run that they are to end, and how.

    A cancel ends them at once; a pause, or giving way to another run, lets batches in flight come
    to their end.
    """

    def __init__(self) -> None:
        self.reason: StopReason | None = None
        self._asked = asyncio.Event()
        self._cancelled = asyncio.Event()

    def ask(self, reason: StopReason) -> None:
        """Asks for the end; asking again for less changes nothing."""
        self.reason = max(reason, self.reason or reason)
        self._asked.set()
        if self.reason is StopReason.CANCEL:
            self._cancelled.set()

    @property
    def asked(self) -> bool:
        """Whether the work is to end."""
        return self._asked.is_set()

    async def wait(self) -> None:
        """Returns once the work is to end."""
        await self._asked.wait()

    async def wait_for_cancel(self) -> None:
        """Returns once the work is to end at once."""
        await self._cancelled.wait()
