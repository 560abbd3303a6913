"""One run from its take-over to its end: whatever raises, the run's row tells how it ended."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from services.indexer.embedder import Embedder
from services.indexer.errors import (
    DATABASE,
    DATABASE_FAILURES,
    ModelNotLoadedError,
    RunOwnershipLostError,
)
from services.indexer.model import Failure
from services.indexer.planner import Planner
from services.indexer.stops import StopReason, StopSignal
from services.indexer.storage.database import retry_transient
from services.indexer.transitions import RunState
from services.runtime.call_traces import continued
from services.runtime.errors import DependencyUnavailableError, LodestoneError
from services.runtime.failpoints import failpoint
from services.runtime.log import get_logger
from services.runtime.telemetry import start_as_current_span

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from services.indexer.embed_client import EmbedClient
    from services.indexer.forwards import ForwardGate
    from services.indexer.io_client import IoClient
    from services.indexer.ledger import RunLedger
    from services.indexer.model_choice import ModelChoice
    from services.indexer.run import Run
    from services.indexer.run_spec import RunPriority
    from services.indexer.settings import IndexerSettings
    from services.indexer.signals import RunSignals
    from services.indexer.storage.files import FileStore
    from services.indexer.storage.marks import MarkStore
    from services.indexer.storage.model_queue import ModelQueue
    from services.indexer.storage.nodes import NodeQueue
    from services.indexer.storage.workspaces import WorkspaceStore
    from services.indexer.text_bytes import TextBudget
    from services.indexer.turns import ClaimTurns

_BEATS_PER_LEASE = 4


@dataclass(frozen=True, slots=True)
class RunContext:
    """What runs are made with; shared by all runs of a process."""

    settings: IndexerSettings
    workspaces: WorkspaceStore
    choice: ModelChoice
    files: FileStore
    nodes: NodeQueue
    model_nodes: ModelQueue
    ledger: RunLedger
    marks: MarkStore
    signals: RunSignals
    io: IoClient
    embed: EmbedClient
    gate: ForwardGate
    turns: ClaimTurns
    texts: TextBudget


@dataclass(frozen=True, slots=True)
class _WorkEnd:
    """How the work of an owner ended: with the run, or before."""

    failure: Failure | None
    given_back: StopReason | None = None


class RunExecution:
    """Works on one run that this process owns."""

    def __init__(self, context: RunContext, run: Run) -> None:
        self._context = context
        self._run = run
        self._stop = StopSignal()
        self._nudged = asyncio.Event()
        if run.cancel_requested:
            self._stop.ask(StopReason.CANCEL)

    @property
    def priority(self) -> RunPriority:
        """Who goes first."""
        return self._run.priority

    def tell(self, state: RunState) -> None:
        """Stops the work when the run's row says so; a row that was changed back is seen later."""
        if state is RunState.CANCELLING:
            self._stop.ask(StopReason.CANCEL)
        elif state is RunState.PAUSING:
            self._stop.ask(StopReason.PAUSE)

    def nudge(self) -> None:
        """Looks at once whether something is asked of the run."""
        self._nudged.set()

    async def execute(self) -> None:
        """Works until the run has ended, is given back, or was lost to another owner.

        A cancelled task gives the run back: its owner goes away, and the run goes on elsewhere.
        """
        log = get_logger().bind(run=str(self._run.id), attempt=self._run.attempt)
        log.info("run_started", mode=self._run.mode.value)
        try:
            end = await self._work_while_owned()
            if end.given_back:
                await self._give_back()
                log.info("run_given_back", reason=end.given_back.name.lower())
                return
            failure = end.failure
            await failpoint("indexer.finish.before")
            state = await retry_transient(lambda: self._context.ledger.finish(self._run, failure))
            await failpoint("indexer.finish.after")
        except RunOwnershipLostError:
            log.warning("run_lost")
            return
        except asyncio.CancelledError:
            await asyncio.shield(self._give_back())
            raise
        except DATABASE_FAILURES as error:
            # The database is away or full: what was going on is not known to be written. The run
            # begins again, here or elsewhere, and finds what was.
            log.warning("run_left", reason=error.reason)
            await self._give_back(left=True)
            return
        log.info("run_finished", state=state.value, reason=failure.reason if failure else None)
        self._context.signals.notify(self._run.id)

    async def _give_back(self, *, left: bool = False) -> None:
        """Puts the run back; if that fails, its lease expires and it is taken over."""
        with contextlib.suppress(LodestoneError):
            await retry_transient(lambda: self._context.ledger.release(self._run, left=left))
        self._context.signals.notify(self._run.id)

    async def _work_while_owned(self) -> _WorkEnd:
        """Returns how the work ended."""
        work = asyncio.create_task(self._traced_work(), name="run-work")
        beat = asyncio.create_task(self._beat(), name="run-beat")
        try:
            await _first_of(work, beat, self._stop.wait())
            if not (work.done() or beat.done() or self._stop.reason is StopReason.CANCEL):
                # Batches in flight come to their end, which is worth a while, not any time.
                await _first_of(
                    work,
                    beat,
                    self._stop.wait_for_cancel(),
                    seconds=self._context.settings.pause_grace_seconds,
                )
            return self._end_of(work, beat)
        finally:
            for task in (work, beat):
                task.cancel()
            await asyncio.gather(work, beat, return_exceptions=True)

    def _end_of(self, work: asyncio.Task[bool], beat: asyncio.Task[None]) -> _WorkEnd:
        """Returns what is to become of the run; a wish to pause undoes no work that is done."""
        if work.done():
            failure = _failure_of(work)
            if failure is not None or work.result():
                return _WorkEnd(failure)
        elif beat.done():
            return _WorkEnd(_failure_of(beat))
        reason = self._stop.reason
        assert reason is not None, "work that is not done ends because it was asked to"
        return _WorkEnd(None, None if reason is StopReason.CANCEL else reason)

    async def _beat(self) -> None:
        """Prolongs the lease, and tells what is asked of the run. Raises RunOwnershipLostError."""
        interval_seconds = self._context.settings.lease_seconds / _BEATS_PER_LEASE
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval_seconds):
                    await self._nudged.wait()
            self._nudged.clear()
            wishes = await retry_transient(lambda: self._context.ledger.beat(self._run))
            self.tell(RunState.CANCELLING if wishes.cancel else wishes.state)
            if wishes.give_way:
                self._stop.ask(StopReason.GIVE_WAY)

    async def _traced_work(self) -> bool:
        with start_as_current_span(
            "lodestone.indexer.run",
            # Also after a restart, and by another replica: the trace is that of the call.
            context=continued(self._run.traceparent),
            attributes={
                "lodestone.run": str(self._run.id),
                "lodestone.workspace": self._run.workspace_name,
            },
        ):
            return await self._work()

    async def _work(self) -> bool:
        """Returns whether the run came to its end; false when it was stopped before."""
        context = self._context
        if self._run.cancel_requested:
            return False
        workspace = await context.workspaces.get(self._run.workspace_name)
        models = await context.choice.choose(self._run, workspace)
        planner = Planner(
            self._run,
            workspace.tree,
            models.active,
            io=context.io,
            files=context.files,
            ledger=context.ledger,
            marks=context.marks,
            settings=context.settings,
            on_progress=self._notify,
        )
        embedder = Embedder(
            self._run,
            workspace.tree,
            models.target,
            models.remote,
            io=context.io,
            embed=context.embed,
            gate=context.gate,
            nodes=context.nodes if models.target == models.active else context.model_nodes,
            turns=context.turns,
            texts=context.texts,
            stop=self._stop,
            replan=planner.replan,
            settings=context.settings,
            on_progress=self._notify,
        )
        planner.on_planned = embedder.more_nodes
        async with asyncio.TaskGroup() as group:
            embedding = group.create_task(embedder.run(), name="embedder")
            if await self._plan_unless_stopped(planner):
                embedder.no_more_nodes()
            else:
                embedder.look_again()  # who waits for some sees that the work is to end
        return embedding.result()

    async def _plan_unless_stopped(self, planner: Planner) -> bool:
        """Returns whether the plan is finished; one that breaks off is made again later."""
        plan = asyncio.create_task(planner.plan(), name="planner")
        try:
            await _first_of(plan, self._stop.wait())
            if plan.done():
                plan.result()
            return plan.done()
        finally:
            plan.cancel()
            await asyncio.gather(plan, return_exceptions=True)

    def _notify(self) -> None:
        self._context.signals.notify(self._run.id)


async def _first_of(
    *waits: asyncio.Task[Any] | Coroutine[Any, Any, None], seconds: float | None = None
) -> None:
    """Returns once one of the tasks or waits has ended, or the time is over; ends the waits."""
    tasks = [
        wait if isinstance(wait, asyncio.Task) else asyncio.create_task(wait) for wait in waits
    ]
    own = [task for task, wait in zip(tasks, waits, strict=True) if task is not wait]
    try:
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in own:
            task.cancel()
        await asyncio.gather(*own, return_exceptions=True)


def _failure_of(work: asyncio.Task[Any]) -> Failure | None:
    """Returns the failure that a task ended with; raises what is no failure of the run."""
    error = work.exception()
    while isinstance(error, ExceptionGroup):
        error = _worst(error)
    if error is None:
        return None
    if isinstance(error, RunOwnershipLostError):
        raise error
    if isinstance(error, DependencyUnavailableError) and (
        error.metadata.get("dependency") == DATABASE
    ):
        raise error
    if isinstance(error, LodestoneError):
        hint = (
            " Start the service that serves it." if isinstance(error, ModelNotLoadedError) else ""
        )
        return Failure(error.reason, f"{error.message}{hint}")
    get_logger().error("run_crashed", exc_info=error)
    return Failure("ERROR_REASON_INTERNAL", "The indexer did not expect this; its log tells more.")


def _worst(group: ExceptionGroup[Exception]) -> Exception:
    """Returns the error that decides: a lost run before all, then what nobody expected."""
    for kind in (RunOwnershipLostError, DependencyUnavailableError):
        for error in group.exceptions:
            if isinstance(error, kind):
                return error
    return group.exceptions[0]
