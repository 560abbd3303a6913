"""Follows a run to its end: through reconnects, a dying service and Ctrl+C."""

from __future__ import annotations

import queue
import signal
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import grpc

from lodestone.indexer.v1 import index_run_service_pb2 as runs_pb2
from services.cli.deaths import check_alive
from services.cli.preflight import FREE_BYTES_TO_GO_ON, disk_full, free_bytes
from services.cli.rpc_errors import explain, is_unavailable
from services.cli.state import read_state
from services.cli.terminal import note
from services.runtime.exits import ExitCode, StartError

if TYPE_CHECKING:
    from types import FrameType

    from services.cli.folder import DataFolder
    from services.cli.indexer import Indexer

FINISHED = frozenset(
    {
        runs_pb2.IndexRun.STATE_CANCELLED,
        runs_pb2.IndexRun.STATE_SUCCEEDED,
        runs_pb2.IndexRun.STATE_SUCCEEDED_WITH_WARNINGS,
        runs_pb2.IndexRun.STATE_FAILED,
        runs_pb2.IndexRun.STATE_STALE,
    }
)
_POLL_SECONDS = 0.25
_CHECK_SECONDS = 0.5
_RECONNECT_SECONDS = 0.3
_GIVE_UP_SECONDS = 30.0
_FULL_SECONDS = 10.0
_GOES_ON = "Run the same command again: it goes on where it was."


class Display(Protocol):
    """Shows the progress of a run."""

    def update(self, run: runs_pb2.IndexRun) -> None:
        """Shows a state."""

    def close(self) -> None:
        """Leaves the terminal as it was."""


@dataclass(frozen=True, slots=True)
class _Ended:
    """The stream ended; None is an orderly end."""

    error: grpc.RpcError | None


class _Interrupted:
    """The user pressed Ctrl+C, or SIGTERM came."""


_Event = runs_pb2.WatchIndexRunResponse | _Ended | _Interrupted


class RunFollower:
    """Follows one run; a context manager that owns the signal handlers meanwhile."""

    def __init__(self, indexer: Indexer, folder: DataFolder, display: Display) -> None:
        self._indexer = indexer
        self._folder = folder
        self._display = display
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._token = ""
        self._interrupts = 0
        self._lost_at: float | None = None
        self._full_at: float | None = None
        self._checked_at = time.monotonic()

    def follow(self, run: runs_pb2.IndexRun) -> runs_pb2.IndexRun:
        """Returns the run, finished or paused. Ctrl+C cancels and waits; a second one leaves.

        Raises:
            StartError: a service died, the indexer does not answer for long, or the disk fills up:
                then the run is cancelled while the database can still write that down.
            KeyboardInterrupt: the second Ctrl+C.
        """
        before = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            self._connect(run.name)
            while run.state not in FINISHED and run.state != runs_pb2.IndexRun.STATE_PAUSED:
                run = self._step(run)
                self._display.update(run)
            if self._full_at is not None:
                raise disk_full(self._folder.root, _GOES_ON)
            return run
        finally:
            self._display.close()
            for number, handler in before.items():
                # While it leaves at once, a third Ctrl+C must not take the exit code away.
                signal.signal(number, handler if self._interrupts <= 1 else signal.SIG_IGN)

    def _step(self, run: runs_pb2.IndexRun) -> runs_pb2.IndexRun:
        try:
            event = self._events.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            self._check(run)
            return run
        if time.monotonic() - self._checked_at > _CHECK_SECONDS:
            self._check(run)  # news may come for long from those that are left
        match event:
            case runs_pb2.WatchIndexRunResponse():
                self._lost_at = None
                self._token = event.resume_token or self._token
                return event.index_run if event.HasField("index_run") else run
            case _Ended():
                return self._reconnect(run, event.error)
            case _Interrupted():
                note("Cancelling the run; press Ctrl+C again to leave at once.")
                self._cancel(run)
                return run

    def _connect(self, name: str) -> None:
        stream = self._indexer.watch_run(name, self._token)
        threading.Thread(target=self._read, args=(stream,), name="watch", daemon=True).start()

    def _read(self, stream: object) -> None:
        try:
            for response in stream:  # type: ignore[attr-defined]
                self._events.put(response)
        except grpc.RpcError as error:
            self._events.put(_Ended(error))
        else:
            self._events.put(_Ended(None))

    def _reconnect(self, run: runs_pb2.IndexRun, error: grpc.RpcError | None) -> runs_pb2.IndexRun:
        """Watches again after the server drained or restarted; other errors end the command."""
        if error is not None and not is_unavailable(error):
            raise explain(error)
        self._check(run)
        now = time.monotonic()
        self._lost_at = self._lost_at or now
        if now - self._lost_at > _GIVE_UP_SECONDS:
            raise StartError(
                ExitCode.UNAVAILABLE, f"The indexer service does not answer. {_GOES_ON}"
            )
        time.sleep(_RECONNECT_SECONDS)
        self._connect(run.name)
        return run

    def _check(self, run: runs_pb2.IndexRun) -> None:
        self._checked_at = time.monotonic()
        state = read_state(self._folder.state)
        if state.embedded:
            self._check_room(run)
        check_alive(self._folder, state, _GOES_ON)

    def _check_room(self, run: runs_pb2.IndexRun) -> None:
        """Cancels the run before PostgreSQL has no room for its log, which would stop it hard."""
        if self._full_at is None and free_bytes(self._folder.root) < FREE_BYTES_TO_GO_ON:
            self._full_at = time.monotonic()
            self._cancel(run)
        elif self._full_at is not None and time.monotonic() - self._full_at > _FULL_SECONDS:
            raise disk_full(self._folder.root, _GOES_ON)

    def _cancel(self, run: runs_pb2.IndexRun) -> None:
        try:
            self._indexer.cancel_run(run.name)
        except StartError as error:
            # It may have finished in this very moment: the watch tells. A dead service too.
            note(error.message)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._interrupts += 1
        if self._interrupts == 2:
            raise KeyboardInterrupt
        if self._interrupts > 2:
            return
        self._events.put(_Interrupted())
