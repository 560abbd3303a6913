"""Takes runs that wait, or whose owner died, and works on them."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from services.indexer import metrics
from services.indexer.errors import DATABASE_FAILURES
from services.indexer.execution import RunContext, RunExecution
from services.indexer.run_spec import RunPriority
from services.runtime.failpoints import failpoint
from services.runtime.log import get_logger

if TYPE_CHECKING:
    from uuid import UUID

    from services.indexer.transitions import RunState

_POLL_SECONDS = 0.75
"""Between two looks for runs: one whose owner is gone is taken within its lease and a second."""


class Dispatcher:
    """Owns the tasks of this process's runs."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._running: dict[UUID, tuple[RunExecution, asyncio.Task[None]]] = {}
        self._loop: asyncio.Task[None] | None = None
        self._passed_over = 0
        """Runs that the next look leaves where they are: one that cannot be taken holds up none."""
        context.ledger.on_state = self.tell

    def start(self) -> None:
        """Begins to take runs."""
        self._loop = asyncio.create_task(self._take_forever(), name="dispatcher")

    async def stop(self) -> None:
        """Stops taking runs and gives back those that are not finished."""
        if self._loop is not None:
            self._loop.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._loop
        tasks = [task for _, task in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def tell(self, run_id: UUID, state: RunState) -> None:
        """Tells a run of this process its state; others see it by themselves."""
        if (entry := self._running.get(run_id)) is not None:
            entry[0].tell(state)

    def look_again(self) -> None:
        """Lets all runs of this process look whether one of them is to give way."""
        for execution, _ in self._running.values():
            execution.nudge()

    async def _take_forever(self) -> None:
        settings = self._context.settings
        while True:
            try:
                while (least := self._least_priority()) is not None:
                    await failpoint("indexer.take.before")
                    run = await self._context.ledger.take(
                        settings.max_run_attempts, least, self._passed_over
                    )
                    self._passed_over = 0
                    if run is None:
                        break
                    await failpoint("indexer.take.after")
                    self._begin(RunExecution(self._context, run), run.id)
            except DATABASE_FAILURES:
                self._passed_over += 1
                get_logger().warning("dispatcher_waits_for_database")
            except Exception as error:  # noqa: BLE001 - a dead dispatcher would serve no run ever
                self._passed_over += 1
                metrics.DISPATCH_ERRORS.inc()
                get_logger().error("dispatcher_failed", exc_info=error)
            await self._context.signals.wait_queued(_POLL_SECONDS)

    def _least_priority(self) -> RunPriority | None:
        """Returns the priority from which on a run may be taken now, None for no run.

        Some places are kept for what a user waits for, and of the others one for what somebody
        asked for: runs in the background take hours. Where there is but one, it is beside theirs.
        """
        settings, places = self._context.settings, self._context.settings.max_concurrent_runs
        behind = sum(run.priority is RunPriority.BACKGROUND for run, _ in self._running.values())
        taken = len(self._running) - (1 if behind == places else 0)
        if taken < places:
            kept = behind >= max(1, places - 1)
            return RunPriority.NORMAL if kept else RunPriority.BACKGROUND
        if taken < places + settings.max_interactive_runs:
            return RunPriority.LIVE
        return None

    def _begin(self, execution: RunExecution, run_id: UUID) -> None:
        task = asyncio.create_task(execution.execute(), name=f"run-{run_id}")
        self._running[run_id] = (execution, task)

        def ended(finished: asyncio.Task[None]) -> None:
            # This process may have taken its own run again meanwhile, once its lease was over.
            if (entry := self._running.get(run_id)) is not None and entry[1] is finished:
                del self._running[run_id]
            if not finished.cancelled() and (error := finished.exception()) is not None:
                get_logger().error("run_task_crashed", exc_info=error)
            self._context.signals.notify_queued()

        task.add_done_callback(ended)
