"""Decides what runs next: two lanes, batches packed by tokens, one forward for identical texts."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import TYPE_CHECKING

import numpy as np

from services.embed import metrics
from services.embed.budget import TokenBudget
from services.embed.engine import Engine
from services.embed.model import Lane
from services.embed.packing import PackingQueue
from services.embed.work import Batch, Request, Work
from services.runtime.errors import ShuttingDownError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.embed.admission import Admission
    from services.embed.backends.protocol import Backend
    from services.embed.lanes import LaneTurns
    from services.embed.model import TokenIds
    from services.embed.work import Result, WorkKey

_PREPARED_BATCHES = 1
"""Batches of a lane beyond those that run: a stream that ends one finds the next without the loop.
More would be packed from less, and would keep later texts waiting."""
WINDOW_BATCHES = 24
"""Full batches among whose texts each next one is packed: in fewer more is padding, in more a text
may be passed by more of what came later."""
_LEAST_BATCH_TOKENS = 256
"""Below this, splitting what waits over idle streams costs more than it wins."""


class Batcher:
    """Queues texts and keeps the engine busy; what waits goes when a stream is free, without timer.

    All methods run on the event loop; only `_on_done` is called by engine threads.
    """

    def __init__(
        self,
        backend: Backend,
        admission: Admission,
        *,
        token_budget: int,
        max_texts: int,
        turns: LaneTurns,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._backend = backend
        self._admission = admission
        self._budget = TokenBudget(token_budget)
        self._max_texts = max_texts
        self._concurrency = backend.info.concurrency
        self._padded = backend.info.padded
        self._lanes: dict[Lane, PackingQueue[Work]] = {
            lane: PackingQueue(padded=self._padded, window_tokens=WINDOW_BATCHES * token_budget)
            for lane in Lane
        }
        self._in_flight: dict[WorkKey, Work] = {}
        self._serials = itertools.count()
        self._outstanding = dict.fromkeys(Lane, 0)
        self._queued = {lane: metrics.Part(metrics.QUEUED_TEXTS.labels(lane)) for lane in Lane}
        self._running = metrics.Part(metrics.RUNNING_BATCHES)
        self._graphs = metrics.Part(metrics.CUDA_GRAPHS)
        self._graphs.set(backend.info.graphs)
        self._closed = False
        self._engine = Engine(backend, self._on_done, turns=turns, budget=self._budget)

    async def run(
        self,
        texts: Sequence[TokenIds],
        *,
        lane: Lane,
        route: str = "",
        caller: str = "",
    ) -> list[Result]:
        """Returns one result per text, in order; ends early only when cancelled.

        Raises:
            ShuttingDownError: the batcher is closed.
        """
        if self._closed:
            raise ShuttingDownError("The model is being unloaded.")
        if not texts:
            return []
        request = Request(len(texts))
        works = []
        for position, ids in enumerate(texts):
            work = self._joined((ids.tobytes(), route), ids, lane, caller)
            work.waiters.append((request, position))
            works.append(work)
        self._dispatch()
        try:
            await request.future
        except asyncio.CancelledError:
            request.future.cancel()
            self._leave(works)
            raise
        return [result for result in request.results if result is not None]

    async def close(self) -> None:
        """Ends the engine after the batches that run; whoever still waits is told."""
        self._closed = True
        await asyncio.to_thread(self._engine.close)
        error = ShuttingDownError("The model is being unloaded.")
        for work in list(self._in_flight.values()):
            if not work.abandoned:
                self._finish(work, error)
        self._in_flight.clear()
        for part in (*self._queued.values(), self._running, self._graphs):
            part.set(0)

    def _joined(self, key: WorkKey, ids: TokenIds, lane: Lane, caller: str) -> Work:
        """Returns the work of a text: an identical one in flight, if there is one."""
        work = self._in_flight.get(key)
        if work is None:
            work = Work(next(self._serials), key, ids, lane, caller)
            self._in_flight[key] = work
            self._lanes[lane].add(work)
        else:
            metrics.SHARED_TEXTS.inc()
            if lane is Lane.INTERACTIVE and work.lane is Lane.BULK:
                self._promote(work)
            self._lanes[work.lane].share(work, caller)
        return work

    def _promote(self, work: Work) -> None:
        """Moves bulk work that a user now waits for too, unless its forward has begun."""
        if self._lanes[Lane.BULK].discard(work) or self._engine.withdraw(work):
            work.lane = Lane.INTERACTIVE
            self._lanes[Lane.INTERACTIVE].add(work)

    def _leave(self, works: Sequence[Work]) -> None:
        """Takes out of the queues what nobody waits for any more, so that it takes no memory."""
        for work in works:
            queue = self._lanes[work.lane]
            if work.abandoned and queue.discard(work):
                self._forget(work)
                self._queued[work.lane].set(len(queue))

    def _dispatch(self) -> None:
        """Hands batches to the engine while it can take one."""
        for lane, queue in self._lanes.items():
            while queue and self._outstanding[lane] < self._concurrency + _PREPARED_BATCHES:
                works = self._take(lane)
                if works:
                    self._outstanding[lane] += 1
                    self._engine.submit(Batch(works, lane, padded=self._padded))
            self._queued[lane].set(len(queue))
        self._running.set(sum(self._outstanding.values()))

    def _take(self, lane: Lane) -> list[Work]:
        """Takes the next batch of a lane, without what nobody waits for any more."""
        queue = self._lanes[lane]
        idle = max(self._concurrency - sum(self._outstanding.values()), 1)
        share = max(-(-queue.tokens // idle), _LEAST_BATCH_TOKENS)
        taken = queue.take(token_budget=min(self._budget.tokens, share), max_items=self._max_texts)
        alive = []
        for work in taken:
            if work.abandoned:
                self._forget(work)
            else:
                alive.append(work)
        return alive

    def _on_done(self, batch: Batch, results: Sequence[Result | None], seconds: float) -> None:
        with contextlib.suppress(RuntimeError):  # a closed loop has nobody left to tell
            self._loop.call_soon_threadsafe(self._settle, batch, results, seconds)

    def _settle(self, batch: Batch, results: Sequence[Result | None], seconds: float) -> None:
        self._outstanding[batch.lane] -= 1
        done = bool(batch.works)
        for work, result in zip(batch.works, results, strict=True):
            done = done and isinstance(result, np.ndarray)
            if result is not None:
                self._finish(work, result)
            elif work.abandoned:
                self._forget(work)
            else:  # an identical text came between the engine's look and now
                self._lanes[work.lane].add(work)
        if done:  # nothing was dropped or tried again
            metrics.FORWARD_SECONDS.observe(seconds)
            self._admission.note_forward(sum(work.tokens for work in batch.works), seconds)
        if not self._closed:
            self._graphs.set(self._backend.info.graphs)  # another engine measures anew
            self._dispatch()

    def _finish(self, work: Work, result: Result) -> None:
        self._in_flight.pop(work.key, None)
        work.settle(result)

    def _forget(self, work: Work) -> None:
        metrics.DROPPED_TEXTS.inc()
        self._in_flight.pop(work.key, None)
