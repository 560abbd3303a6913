"""Removes what need not be kept, in the background, a bounded step at a time."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from services.indexer import metrics
from services.runtime.errors import DependencyUnavailableError
from services.runtime.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_PAUSE_SECONDS = 0.1
"""Rest between two steps while there is more to do, so that others get their turn."""


class Upkeep:
    """Owns one task that calls a step again and again.

    Args:
        step: does a bounded piece of work; returns how much it did, 0 when nothing is left.
        interval_seconds: time between two looks when nothing is left.
    """

    def __init__(self, step: Callable[[], Awaitable[int]], interval_seconds: float) -> None:
        self._step = step
        self._interval_seconds = interval_seconds
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins."""
        self._loop = asyncio.create_task(self._run(), name="upkeep")

    async def stop(self) -> None:
        """Ends; a step in flight is rolled back."""
        if self._loop is not None:
            self._loop.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._loop

    async def _run(self) -> None:
        while True:
            done = 0
            try:
                done = await self._step()
                metrics.UPKEEP_ROWS.inc(done)
            except DependencyUnavailableError:
                get_logger().warning("upkeep_waits_for_database")
            except Exception as error:  # noqa: BLE001 - the next step may do better
                get_logger().error("upkeep_failed", exc_info=error)
            await asyncio.sleep(_PAUSE_SECONDS if done else self._interval_seconds)
