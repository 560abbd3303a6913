"""Runs forwards in threads of its own and finds the text that is at fault when one fails."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from opentelemetry.context import Context

from services.embed import metrics, vectors
from services.embed.backends.protocol import (
    EngineDownError,
    EngineError,
    EngineLostError,
    OutOfMemoryError,
)
from services.embed.errors import BadVectorError, EngineAwayError, TextEndsEngineError
from services.embed.gate import SuspectGate
from services.embed.packing import forward_tokens
from services.runtime.errors import LodestoneError
from services.runtime.log import get_logger
from services.runtime.telemetry import start_as_current_span, tell_failed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from services.embed.backends.protocol import Backend
    from services.embed.budget import TokenBudget
    from services.embed.lanes import LaneTurns
    from services.embed.model import Lane, Vectors
    from services.embed.work import Batch, Result, Work

_JOIN_SECONDS = 30.0
_MOST_STARTS = 3
"""Times that an engine may go away between being up and getting a batch, before the batch fails."""
_DEATHS_ALONE = 2
"""Times that a single text may end the engine while nothing else runs, before it is to blame: an
engine may also die of something else."""


@dataclass(slots=True)
class _Run:
    """How the works of a batch end, and the time of the forwards that answered.

    Waits for an engine that is rebuilt are none of it: what waits next will not take as long.
    """

    results: dict[Work, Result] = field(default_factory=dict)
    seconds: float = 0.0


class Engine:
    """Feeds batches to a backend from as many threads as it takes.

    `turns` says which lane goes next. `done` is called on an engine thread with the batch, one
    result per work in order (None for work that was abandoned before the forward), and the seconds
    that its forwards took.
    """

    def __init__(
        self,
        backend: Backend,
        done: Callable[[Batch, Sequence[Result | None], float], None],
        *,
        turns: LaneTurns,
        budget: TokenBudget,
    ) -> None:
        self._backend = backend
        self._done = done
        self._turns = turns
        self._budget = budget
        self._gate = SuspectGate()
        self._batches: dict[Lane, deque[tuple[float, Batch]]] = {}
        self._ready = threading.Condition()
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._serve, name=f"forward-{number}", daemon=True)
            for number in range(backend.info.concurrency)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, batch: Batch) -> None:
        """Queues a batch behind the others of its lane."""
        with self._ready:
            assert not self._stopping
            queue = self._batches.setdefault(batch.lane, deque())
            queue.append((time.monotonic(), batch))
            self._ready.notify()

    def withdraw(self, work: Work) -> bool:
        """Takes a work out of a batch that no thread has begun; returns whether there was one."""
        with self._ready:
            queue = self._batches.get(work.lane, deque())
            at = next((at for at, (_, batch) in enumerate(queue) if work in batch.works), None)
            if at is None:
                return False
            _, batch = queue[at]
            batch.works.remove(work)
            if batch.works:
                return True
            del queue[at]
        self._done(batch, [], 0.0)
        return True

    def close(self) -> None:
        """Ends the threads after the batches they run; blocks until then, but not on an engine."""
        with self._ready:
            self._stopping = True
            self._ready.notify_all()
        self._backend.stop()
        for thread in self._threads:
            thread.join(_JOIN_SECONDS)

    def _serve(self) -> None:
        while (batch := self._next()) is not None:
            run = _Run()
            # A forward serves several calls, so it is a trace of its own that points to theirs.
            with start_as_current_span(
                "lodestone.embed.forward",
                context=Context(),
                links=batch.links(),
                attributes={"lodestone.texts": len(batch.works), "lodestone.tokens": batch.tokens},
            ) as span:
                results = self._run(batch.works, run)
                failed = [each for each in results if isinstance(each, LodestoneError)]
                tell_failed(span, [error.reason for error in failed])
            self._done(batch, results, run.seconds)

    def _next(self) -> Batch | None:
        """Waits for a batch and takes it; None at the end."""
        with self._ready:
            self._ready.wait_for(lambda: self._stopping or any(self._batches.values()))
            if self._stopping:
                return None
            heads = {lane: queue[0][0] for lane, queue in self._batches.items() if queue}
            lane = self._turns.choose(heads, time.monotonic())
            _, batch = self._batches[lane].popleft()
            self._turns.charge(lane, batch.tokens)
            return batch

    def _run(self, works: Sequence[Work], run: _Run) -> list[Result | None]:
        """Returns one result per work; whatever goes wrong becomes a result."""
        self._forward(works, run)
        return [run.results.get(work) for work in works]

    def _forward(self, works: Sequence[Work], run: _Run) -> None:
        """Runs a batch; when it fails, halves it until the bad text stands alone."""
        alive = [work for work in works if not work.abandoned]
        if not alive:
            return
        try:
            with self._gate.shared():
                found = self._results(alive, run)
        except EngineLostError:
            self._forward_suspects(alive, run)
        except EngineDownError:
            run.results.update(dict.fromkeys(alive, EngineAwayError()))
        except LodestoneError as error:  # how every text of the batch ends; halves end no better
            run.results.update(dict.fromkeys(alive, error))
        except BaseException as error:  # noqa: BLE001 - a model may raise anything; the thread lives
            self._note_failure(alive, error)
            if len(alive) == 1:
                run.results[alive[0]] = _failure(alive[0], error)
                return
            self._forward(alive[: len(alive) // 2], run)
            self._forward(alive[len(alive) // 2 :], run)
        else:
            run.results.update(found)

    def _forward_suspects(self, works: Sequence[Work], run: _Run) -> None:
        """Runs works that an engine ended with while nothing else runs, until the guilty is found.

        Another batch may have been the cause: most often all of them are fine alone.
        """
        error = EngineLostError(hung=False)
        for _ in range(_DEATHS_ALONE if len(works) == 1 else 1):
            alive = [work for work in works if not work.abandoned]
            if not alive:
                return
            try:
                with self._gate.alone():
                    found = self._results(alive, run)
            except EngineLostError as lost:
                error = lost
            except BaseException:  # noqa: BLE001 - it answers: the usual way finds the text
                self._forward(alive, run)
                return
            else:
                run.results.update(found)
                return
        if len(works) == 1:
            get_logger().error("text_ends_engine", tokens=works[0].tokens, hung=error.hung)
            run.results[works[0]] = TextEndsEngineError(hung=error.hung)
            return
        self._forward_suspects(works[: len(works) // 2], run)
        self._forward_suspects(works[len(works) // 2 :], run)
        if all(isinstance(run.results.get(work), np.ndarray) for work in works):
            self._note_too_large(works)

    def _note_too_large(self, works: Sequence[Work]) -> None:
        """Has later batches be smaller than one that ended an engine, though no text of it does.

        The kernel kills a process that takes too much memory, and nothing tells of it.
        """
        tokens = self._cost([work.tokens for work in works])
        self._budget.shrink(tokens)
        get_logger().warning("batch_ends_engine", tokens=tokens, budget=self._budget.tokens)

    def _note_failure(self, works: Sequence[Work], error: BaseException) -> None:
        if isinstance(error, OutOfMemoryError):
            tokens = self._cost([work.tokens for work in works])
            self._budget.shrink(tokens)
            metrics.OUT_OF_MEMORY.inc()
            get_logger().warning("forward_out_of_memory", tokens=tokens, budget=self._budget.tokens)

    def _cost(self, lengths: Sequence[int]) -> int:
        return forward_tokens(lengths, padded=self._backend.info.padded)

    def _results(self, works: Sequence[Work], run: _Run) -> dict[Work, Result]:
        """Returns how each work ends that is still waited for once the engine is there.

        Raises:
            EngineDownError: the engine is away and does not come back.
            Exception: whatever else a backend raises.
        """
        for _ in range(_MOST_STARTS):
            self._backend.wait_until_up()
            alive = [work for work in works if not work.abandoned]
            if not alive:
                return {}
            started = time.perf_counter()
            with contextlib.suppress(EngineDownError):
                rows = self._backend.infer([work.ids for work in alive], alive[0].route)
                run.seconds += time.perf_counter() - started
                return dict(zip(alive, self._checked(alive, rows), strict=True))
        raise EngineDownError

    def _checked(self, works: Sequence[Work], rows: Vectors) -> list[Result]:
        """Returns the rows; one that must not leave the service is an error."""
        lengths = [work.tokens for work in works]
        metrics.note_forward(lengths, self._cost(lengths))
        self._budget.note_success(self._cost(lengths))
        if len(rows) != len(works):
            raise ValueError("The backend returned another number of rows.")
        info = self._backend.info
        good = vectors.good_rows(rows, dimensions=info.dimensions, scores=info.scores)
        bad = BadVectorError(
            "The model's score is not finite."
            if info.scores
            else "The model's vector is not finite, is zero, or has the wrong size."
        )
        return [row if fine else bad for row, fine in zip(rows, good, strict=True)]


def _failure(work: Work, error: BaseException) -> BadVectorError:
    # The error's text may quote the input, so that only its class is told.
    kind = str(error) if isinstance(error, EngineError) else type(error).__name__
    get_logger().warning("forward_failed", error=kind, tokens=work.tokens)
    return BadVectorError(f"The model failed on this text ({kind}).")
