"""Keeps the database in order in the background, a bounded step at a time."""

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
        task: its name in metrics and log lines, one of `metrics.UPKEEP_TASKS`.
        step: does a bounded piece of work; returns how much it did, 0 when nothing is left.
        interval_seconds: time between two looks when nothing is left.
    """

    def __init__(
        self, task: str, step: Callable[[], Awaitable[int]], interval_seconds: float
    ) -> None:
        self._task = task
        self._step = step
        self._interval_seconds = interval_seconds
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins."""
        metrics.UPKEEP_SUCCESS.labels(self._task).set_to_current_time()  # none is late yet
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
                outcome = "done" if done else "nothing"
                metrics.UPKEEP_SUCCESS.labels(self._task).set_to_current_time()
            except DependencyUnavailableError:
                outcome = "unavailable"
                get_logger().warning("upkeep_waits_for_database", task=self._task)
            except Exception as error:  # noqa: BLE001 - the next step may do better
                outcome = "failed"
                get_logger().error("upkeep_failed", task=self._task, exc_info=error)
            metrics.UPKEEP_STEPS.labels(self._task, outcome).inc()
            await asyncio.sleep(_PAUSE_SECONDS if done else self._interval_seconds)
