"""Watches one live workspace: reads what changes, queues runs over it, and follows them."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.indexer import metrics
from services.indexer.errors import DATABASE_FAILURES, TreeUnavailableError
from services.indexer.live.gather import Gatherer
from services.indexer.model import WatchState
from services.indexer.run import RunMode
from services.indexer.run_spec import RunPriority, RunSpec
from services.indexer.transitions import FINISHED_RUN_STATES, RunState
from services.runtime.errors import DependencyUnavailableError, NotFoundError, OverloadedError
from services.runtime.globs import escape_glob
from services.runtime.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from uuid import UUID

    from services.indexer.ledger import RunLedger
    from services.indexer.live.gather import Batch, GatherRules
    from services.indexer.run import Run
    from services.indexer.signals import RunSignals
    from services.indexer.storage.watches import Watch, WatchStore
    from services.indexer.watch_client import WatchClient, WatchMessage

_FIRST_WAIT_SECONDS = 0.1
_LONGEST_WAIT_SECONDS = {WatchState.UNREACHABLE: 2.0, WatchState.TREE_MISSING: 10.0}
_POLL_SECONDS = 1.0
_LONGEST_SLEEP_SECONDS = 60.0
_INDEXED = frozenset({RunState.SUCCEEDED, RunState.SUCCEEDED_WITH_WARNINGS})


@dataclass(frozen=True, slots=True)
class WatchContext:
    """What watchers are made with; shared by all of a process."""

    rules: GatherRules
    watches: WatchStore
    ledger: RunLedger
    client: WatchClient
    signals: RunSignals
    wake: Callable[[], None]
    """Lets this process look for queued runs, and its runs whether they are to give way."""


class Watcher:
    """Keeps one workspace true to its tree, as long as the lease of its watch holds."""

    def __init__(self, watch: Watch, context: WatchContext) -> None:
        self._watch = watch
        self._context = context
        age = watch.reconciled_seconds
        # A look that came to its end long ago, or never, is due at once.
        due = 0.0 if age is None else max(0.0, context.rules.reconcile_seconds - age)
        self._gather = Gatherer(context.rules, time.monotonic() + due)
        self._news = asyncio.Event()
        self._token = watch.resume_token
        self._state: WatchState | None = None

    async def run(self) -> None:
        """Works until it is cancelled.

        Raises:
            LeaseLostError: another replica watches, or nobody is to.
            NotFoundError: the workspace was deleted.
            ShuttingDownError: the process drains.
        """
        await self._settle_last_run()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._read_forever(), name="watch-read")
            group.create_task(self._drive(), name="watch-drive")

    async def _settle_last_run(self) -> None:
        """Waits for the run that an earlier watcher queued last; one that failed is made up for."""
        if self._watch.last_run is None:
            return
        try:
            run = await self._follow(self._watch.last_run)
        except NotFoundError:
            self._token = ""
            return
        if run.state in _INDEXED:
            await self._written(lambda: self._context.watches.note_end(self._watch, run))
        else:
            self._token = ""

    async def _read_forever(self) -> None:
        wait_seconds = _FIRST_WAIT_SECONDS
        while True:
            told = False
            try:
                stream = self._context.client.watch(self._watch.tree, self._token)
                async with contextlib.aclosing(stream) as messages:
                    async for message in messages:
                        told = True
                        await self._take_in(message)
            except TreeUnavailableError as error:
                state = WatchState.TREE_MISSING
                await self._lose_tree(error)
            except DependencyUnavailableError:
                state = WatchState.UNREACHABLE
            await self._note_state(state)
            wait_seconds = _FIRST_WAIT_SECONDS if told else wait_seconds * 2
            wait_seconds = min(wait_seconds, _LONGEST_WAIT_SECONDS[state])
            await asyncio.sleep(wait_seconds * random.uniform(0.5, 1.0))  # noqa: S311 - spreads

    async def _take_in(self, message: WatchMessage) -> None:
        now = time.monotonic()
        if not self._token:
            self._gather.rescan(now)  # of what was before the watch, nothing is known
        self._token = message.resume_token
        for change in message.changes:
            metrics.LIVE_EVENTS.labels(change.kind).inc()
            self._gather.add(change.paths, now - change.age_seconds, now)
        if message.rescan:
            metrics.LIVE_RESCANS.inc()
            self._gather.rescan(now)
        self._news.set()
        await self._note_state(WatchState.WATCHING)

    async def _lose_tree(self, error: TreeUnavailableError) -> None:
        """Forgets what was gathered; what is indexed stays, and is looked at once it is back."""
        self._gather.forget()
        self._token = ""
        if self._state is not WatchState.TREE_MISSING:
            get_logger().warning(
                "watch_tree_missing", workspace=self._watch.workspace_id, reason=error.reason
            )
            await self._written(lambda: self._context.watches.forget_token(self._watch))

    async def _note_state(self, state: WatchState) -> None:
        if state is not self._state:
            self._state = state
            await self._written(lambda: self._context.watches.set_state(self._watch, state))

    async def _drive(self) -> None:
        """Queues a run whenever one is due, and waits for its end."""
        while True:
            self._news.clear()
            now = time.monotonic()
            batch = self._gather.take(now) if self._state is WatchState.WATCHING else None
            if batch is not None:
                await self._index(batch)
                continue
            due = self._gather.due_at() if self._state is WatchState.WATCHING else None
            seconds = _POLL_SECONDS if due is None else min(due - now, _LONGEST_SLEEP_SECONDS)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, seconds)):
                    await self._news.wait()

    async def _index(self, batch: Batch) -> None:
        """Has a batch indexed, or put off."""
        token = self._token
        try:
            if batch.is_scheduled and await self._context.watches.look_waits(self._watch):
                self._gather.put_off(time.monotonic())  # changes would wait with it
                return
            queued_at = time.monotonic()
            run = await self._context.watches.queue_run(
                self._watch,
                self._context.ledger,
                uuid.uuid4(),
                _spec(batch, queued_at),
                token,
            )
        except (*DATABASE_FAILURES, OverloadedError) as error:
            get_logger().warning("watch_run_put_off", reason=error.reason)
            self._gather.put_off(time.monotonic())
            return
        metrics.LIVE_RUNS.labels(run.trigger.value).inc()
        self._context.wake()
        ended = await self._follow(run.id)
        if ended.state not in _INDEXED:
            get_logger().warning("watch_run_not_indexed", run=str(run.id), state=ended.state.value)
            self._gather.failed(time.monotonic())
            return
        _observe(batch, queued_at, ended)
        await self._written(lambda: self._context.watches.note_end(self._watch, ended))
        self._gather.ended(time.monotonic(), others_wait=await self._keeps_others_waiting(ended))

    async def _keeps_others_waiting(self, run: Run) -> bool:
        try:
            return await self._context.watches.has_whole_run(self._watch, run.id)
        except DependencyUnavailableError:
            return False

    async def _follow(self, run_id: UUID) -> Run:
        """Returns a run once it has ended, wherever it is worked on. Raises NotFoundError."""
        with self._context.signals.subscribe(run_id) as changes:
            while True:
                with contextlib.suppress(DependencyUnavailableError):
                    run = await self._context.ledger.get(self._watch.workspace_name, run_id)
                    if run.state in FINISHED_RUN_STATES:
                        return run
                await changes.wait(_POLL_SECONDS)

    async def _written(self, write: Callable[[], Awaitable[None]]) -> None:
        """Writes what callers are shown; it is not worth an interruption of the watch."""
        with contextlib.suppress(*DATABASE_FAILURES):
            await write()


def _spec(batch: Batch, now: float) -> RunSpec:
    age = max(0.0, now - batch.noted[0]) if batch.noted else None
    if batch.paths:
        return RunSpec(
            mode=RunMode.SCOPED,
            paths=tuple(map(escape_glob, batch.paths)),
            priority=RunPriority.LIVE,
            trigger=batch.trigger,
            change_age_seconds=age,
        )
    return RunSpec(
        priority=RunPriority.BACKGROUND if batch.is_scheduled else RunPriority.NORMAL,
        trigger=batch.trigger,
        change_age_seconds=age,
    )


def _observe(batch: Batch, queued_at: float, run: Run) -> None:
    """Counts how old each change was at the end of its run.

    Two clocks are read, each against itself: this process's until the run was queued, then the
    database's. So neither a jump nor two machines that disagree come into it.
    """
    assert run.finished_at is not None
    seconds = max(0.0, (run.finished_at - run.created_at).total_seconds())
    for noted in batch.noted:
        metrics.FRESHNESS_SECONDS.observe(max(0.0, queued_at - noted) + seconds)
