"""Calls that can be left: nobody waits any more, whatever they hang in."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import Future, InvalidStateError
from typing import TYPE_CHECKING, TypeVar

from services.embed.backends.protocol import EngineDownError

if TYPE_CHECKING:
    from collections.abc import Callable

ResultT = TypeVar("ResultT")


class AbandonableCalls:
    """Runs blocking calls so that all who wait for one can be let go at once.

    A name that is looked up, a connection that is opened and an answer that is read each block in
    another system call, and none of them can be interrupted from outside. So each call has a thread
    of its own, which no exit of the process waits for; against a request over a network its start
    costs nothing.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: set[Future[object]] = set()
        self._stopped = False

    def run(self, work: Callable[[], ResultT]) -> ResultT:
        """Returns what `work` returns, or raises what it raises.

        Raises:
            EngineDownError: `stop` was called, before or meanwhile.
        """
        future: Future[ResultT] = Future()
        with self._lock:
            if self._stopped:
                raise EngineDownError
            self._waiting.add(future)  # type: ignore[arg-type] # only ever failed from there
        try:
            start(work, future)
            return future.result()
        finally:
            with self._lock:
                self._waiting.discard(future)

    def stop(self) -> None:
        """Lets everybody go, now and later; calls that run end as they may."""
        with self._lock:
            self._stopped = True
            waiting = list(self._waiting)
        for future in waiting:
            with contextlib.suppress(InvalidStateError):  # it has ended
                future.set_exception(EngineDownError())


def start(work: Callable[[], ResultT], future: Future[ResultT]) -> None:
    """Runs `work` in a thread of its own; how it ends is told to `future`, if that is open."""

    def call() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            with contextlib.suppress(InvalidStateError):
                future.set_exception(error)
        else:
            with contextlib.suppress(InvalidStateError):
                future.set_result(result)

    threading.Thread(target=call, name="remote-call", daemon=True).start()
