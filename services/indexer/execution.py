"""One run from its take-over to its end: whatever raises, the run's row tells how it ended."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.indexer import metrics
from services.indexer.embedder import Embedder
from services.indexer.errors import (
    DATABASE,
    DiskFullError,
    ModelNotLoadedError,
    RunOwnershipLostError,
)
from services.indexer.model import EmbedModel, Failure, RegisteredModel, Run
from services.indexer.patience import Patience
from services.indexer.planner import Planner
from services.indexer.storage.database import retry_transient
from services.runtime.errors import DependencyUnavailableError, LodestoneError
from services.runtime.failpoints import failpoint
from services.runtime.log import get_logger
from services.runtime.telemetry import tracer

if TYPE_CHECKING:
    from services.indexer.embed_client import EmbedClient
    from services.indexer.forwards import ForwardGate
    from services.indexer.io_client import IoClient
    from services.indexer.ledger import RunLedger
    from services.indexer.settings import IndexerSettings
    from services.indexer.signals import RunSignals
    from services.indexer.storage.files import FileStore
    from services.indexer.storage.nodes import NodeQueue
    from services.indexer.storage.workspaces import WorkspaceStore

_BEATS_PER_LEASE = 4


@dataclass(frozen=True, slots=True)
class RunContext:
    """What runs are made with; shared by all runs of a process."""

    settings: IndexerSettings
    workspaces: WorkspaceStore
    files: FileStore
    nodes: NodeQueue
    ledger: RunLedger
    signals: RunSignals
    io: IoClient
    embed: EmbedClient
    gate: ForwardGate


class RunExecution:
    """Works on one run that this process owns."""

    def __init__(self, context: RunContext, run: Run) -> None:
        self._context = context
        self._run = run
        self._cancel = asyncio.Event()

    def cancel(self) -> None:
        """Ends the run as cancelled, soon; the ledger knows of the wish already."""
        self._cancel.set()

    async def execute(self) -> None:
        """Works until the run has ended, or was lost to another owner.

        A cancelled task gives the run back: its owner goes away, and the run goes on elsewhere.
        """
        log = get_logger().bind(run=str(self._run.id), attempt=self._run.attempt)
        log.info("run_started", mode=self._run.mode.value)
        try:
            failure = await self._work_while_owned()
            await failpoint("indexer.finish.before")
            state = await retry_transient(lambda: self._context.ledger.finish(self._run, failure))
            await failpoint("indexer.finish.after")
        except RunOwnershipLostError:
            log.warning("run_lost")
            return
        except asyncio.CancelledError:
            await asyncio.shield(self._give_back())
            raise
        except (DependencyUnavailableError, DiskFullError) as error:
            # The database is away or full: what was going on is not known to be written. The run
            # begins again, here or elsewhere, and finds what was.
            log.warning("run_left", reason=error.reason)
            await self._give_back()
            return
        metrics.RUNS.labels(state.value).inc()
        log.info("run_finished", state=state.value, reason=failure.reason if failure else None)
        self._context.signals.notify(self._run.id)

    async def _give_back(self) -> None:
        """Queues the run again; if that fails, its lease expires and it is taken over."""
        with contextlib.suppress(LodestoneError):
            await retry_transient(lambda: self._context.ledger.release(self._run))
        self._context.signals.notify(self._run.id)

    async def _work_while_owned(self) -> Failure | None:
        """Returns why the run failed, or None: it came to its end, or is to be cancelled."""
        work = asyncio.create_task(self._traced_work(), name="run-work")
        beat = asyncio.create_task(self._beat_until_cancelled(), name="run-beat")
        try:
            await asyncio.wait((work, beat), return_when=asyncio.FIRST_COMPLETED)
            return _failure_of(work if work.done() else beat)
        finally:
            for task in (work, beat):
                task.cancel()
            await asyncio.gather(work, beat, return_exceptions=True)

    async def _beat_until_cancelled(self) -> None:
        """Returns when a cancel is asked for. Raises RunOwnershipLostError."""
        interval_seconds = self._context.settings.lease_seconds / _BEATS_PER_LEASE
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval_seconds):
                    await self._cancel.wait()
                    return
            if await retry_transient(lambda: self._context.ledger.beat(self._run)):
                return

    async def _traced_work(self) -> None:
        with tracer().start_as_current_span(
            "lodestone.indexer.run", attributes={"lodestone.run": str(self._run.id)}
        ):
            await self._work()

    async def _work(self) -> None:
        context = self._context
        if self._run.cancel_requested:
            return
        workspace = await context.workspaces.get(self._run.workspace_name)
        remote, model = await self._activate_model()
        planner = Planner(
            self._run,
            workspace.tree,
            model,
            io=context.io,
            files=context.files,
            ledger=context.ledger,
            settings=context.settings,
            on_progress=self._notify,
        )
        embedder = Embedder(
            self._run,
            workspace.tree,
            model,
            remote,
            io=context.io,
            embed=context.embed,
            gate=context.gate,
            nodes=context.nodes,
            replan=planner.replan,
            settings=context.settings,
            on_progress=self._notify,
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(embedder.run(), name="embedder")
            await planner.plan()
            embedder.no_more_nodes()

    async def _activate_model(self) -> tuple[EmbedModel, RegisteredModel]:
        context = self._context
        patience = Patience(context.settings.dependency_patience_seconds)
        remote = await patience.call(lambda: context.embed.model(context.settings.model))
        model = await context.workspaces.register_model(remote)
        await context.workspaces.activate(self._run, model, context.ledger)
        return remote, model

    def _notify(self) -> None:
        self._context.signals.notify(self._run.id)


def _failure_of(work: asyncio.Task[None]) -> Failure | None:
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
