"""Runs forwards in threads of its own and finds the text that is at fault when one fails."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from services.embed import metrics, vectors
from services.embed.errors import BadVectorError
from services.embed.model import Lane
from services.runtime.errors import LodestoneError
from services.runtime.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from services.embed.backends.protocol import Backend
    from services.embed.work import Batch, Result, Work

_JOIN_SECONDS = 30.0


class Engine:
    """Feeds batches to a backend from as many threads as it takes.

    Interactive batches run before bulk ones that have not started, but not more than
    `interactive_burst` in a row while bulk waits. `done` is called on an engine thread with the
    batch, one result per work in order (None for work that was abandoned before the forward), and
    the seconds that it took.
    """

    def __init__(
        self,
        backend: Backend,
        done: Callable[[Batch, Sequence[Result | None], float], None],
        *,
        interactive_burst: int,
    ) -> None:
        self._backend = backend
        self._done = done
        self._interactive_burst = interactive_burst
        self._burst = 0
        self._batches: dict[Lane, deque[Batch]] = {lane: deque() for lane in Lane}
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
            self._batches[batch.lane].append(batch)
            self._ready.notify()

    def close(self) -> None:
        """Ends the threads after the batches they run; blocks until then."""
        with self._ready:
            self._stopping = True
            self._ready.notify_all()
        for thread in self._threads:
            thread.join(_JOIN_SECONDS)

    def _serve(self) -> None:
        while (batch := self._next()) is not None:
            started = time.perf_counter()
            results = self._run(batch.works)
            self._done(batch, results, time.perf_counter() - started)

    def _next(self) -> Batch | None:
        """Waits for a batch and takes it; None at the end."""
        interactive, bulk = self._batches[Lane.INTERACTIVE], self._batches[Lane.BULK]
        with self._ready:
            while not interactive and not bulk and not self._stopping:
                self._ready.wait()
            if self._stopping:
                return None
            if interactive and not (bulk and self._burst >= self._interactive_burst):
                self._burst += 1
                return interactive.popleft()
            self._burst = 0
            return bulk.popleft()

    def _run(self, works: Sequence[Work]) -> list[Result | None]:
        """Returns one result per work; whatever goes wrong becomes a result."""
        alive = [work for work in works if not work.abandoned]
        results = dict(zip(alive, self._forward(alive), strict=True)) if alive else {}
        return [results.get(work) for work in works]

    def _forward(self, works: Sequence[Work]) -> list[Result]:
        """Runs a batch; when it fails, halves it until the bad text stands alone."""
        try:
            return self._results(works)
        except LodestoneError as error:  # how every text of the batch ends; halves end no better
            return [error] * len(works)
        except Exception as error:  # noqa: BLE001 - a model may raise anything; the thread must live
            if len(works) == 1:
                return [_failure(works[0], error)]
        middle = len(works) // 2
        return [*self._forward(works[:middle]), *self._forward(works[middle:])]

    def _results(self, works: Sequence[Work]) -> list[Result]:
        rows = self._backend.infer([work.ids for work in works])
        metrics.note_forward([work.tokens for work in works])
        if len(rows) != len(works):
            raise ValueError("The backend returned another number of rows.")
        good = vectors.good_rows(rows, dimensions=self._backend.info.dimensions)
        bad = BadVectorError("The model's vector is not finite, is zero, or has the wrong size.")
        results: list[Result] = [bad] * len(works)
        for vector_type in {work.vector_type for work in works}:
            wanted = [
                at for at, work in enumerate(works) if good[at] and work.vector_type is vector_type
            ]
            chosen = rows if len(wanted) == len(works) else rows[wanted]
            for at, data in zip(wanted, vectors.to_bytes(chosen, vector_type), strict=True):
                results[at] = data
        return results


def _failure(work: Work, error: Exception) -> BadVectorError:
    # The error's text may quote the input, so that only its class is told.
    kind = type(error).__name__
    get_logger().warning("forward_failed", error=kind, tokens=work.tokens)
    return BadVectorError(f"The model failed on this text ({kind}).")
