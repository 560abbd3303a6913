"""One life of the process that runs the model: from its start to its end, however it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from services.embed.backends.protocol import EngineError, EngineLostError, OutOfMemoryError
from services.embed.hosting import frames
from services.embed.hosting.frames import Frame, Kind
from services.runtime.exits import ExitCode, StartError
from services.runtime.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.embed.backends.protocol import BackendInfo, TextEncoder
    from services.embed.model import TokenIds, Vectors
    from services.embed.settings import EmbedSettings
    from services.embed.sources import Source

_CHILD = "services.embed.hosting.child"
_EXIT_SECONDS = 0.5
"""A process that was asked to end is killed after this: a stop has about two seconds in all."""


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """What a new process is to load."""

    source: Source
    settings: EmbedSettings
    memory_bytes: int
    """Most address space that it may take; 0 is no limit."""


class Call:
    """A batch that the process has; `wait` for what comes of it."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self._frame: Frame | None = None
        self._hung = False

    def settle(self, frame: Frame | None, *, hung: bool = False) -> None:
        """Ends the call: with its answer, or None when the process is gone, and whether it hung."""
        self._frame = frame
        self._hung = hung
        self._done.set()

    def wait(self, timeout_seconds: float) -> bool:
        """Returns whether the call has ended."""
        return self._done.wait(timeout_seconds)

    def rows(self) -> Vectors:
        """Returns the answer of a call that has ended.

        Raises:
            EngineLostError: the process went away before it answered.
            OutOfMemoryError, EngineError: it answered with an error.
        """
        if self._frame is None:
            raise EngineLostError(hung=self._hung)
        if self._frame.kind is Kind.ROWS:
            return frames.unpack_rows(self._frame.payload)
        name = frames.unpack_value(self._frame.payload)
        raise OutOfMemoryError if name == OutOfMemoryError.__name__ else EngineError(name)


class Life:
    """A running process; any thread may use it.

    It must be made by a thread that lives as long as the process may: the kernel ends the child
    with the thread that forked it.

    Raises OSError when the machine has no room for a process.
    """

    def __init__(self, request: LoadRequest, *, hang_seconds: float) -> None:
        ours, theirs = socket.socketpair()
        with theirs, contextlib.ExitStack() as undo:
            undo.callback(ours.close)
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-m", _CHILD, str(theirs.fileno()), str(os.getpid())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl+C is for the service
            )
            undo.pop_all()
        self._channel = ours
        frames.limit_sending(ours, hang_seconds)
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._calls: dict[int, Call] = {}
        self._number = 0
        self._gone = False
        self._reader: threading.Thread | None = None
        self.cause = "died"
        self.ended = threading.Event()
        with contextlib.suppress(OSError):
            frames.send(ours, Kind.LOAD, 0, frames.pack_value(request))

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def load(self, *, load_seconds: float) -> tuple[BackendInfo, TextEncoder]:
        """Waits until the model is loaded, then begins to take answers.

        Raises:
            StartError: it does not load, not in time, or the process died of it.
        """
        frames.limit_receiving(self._channel, load_seconds)
        try:
            frame = frames.receive(self._channel)
        except BlockingIOError:
            raise StartError(
                ExitCode.MODEL,
                f"The model was not loaded after {load_seconds:g} s "
                "(LODESTONE_EMBED_LOAD_SECONDS).",
            ) from None
        frames.limit_receiving(self._channel, 0)
        if frame is not None and frame.kind is Kind.REFUSED:
            code, message = frames.unpack_value(frame.payload)
            raise StartError(ExitCode(code), message)
        if frame is None:
            raise StartError(
                ExitCode.MODEL,
                "The process that runs the model died while it loaded it; it may have had too "
                "little memory (LODESTONE_EMBED_ENGINE_MEMORY_BYTES, or the machine's).",
            )
        self._reader = threading.Thread(target=self._read, name="engine-answers", daemon=True)
        self._reader.start()
        facts: Any = frames.unpack_value(frame.payload)
        info, encoder = facts
        return info, encoder

    @property
    def gone(self) -> bool:
        """Whether the process has hung up."""
        return self._gone

    def submit(self, batch: Sequence[TokenIds], route: str) -> Call | None:
        """Hands a batch of one route over; None when the process is gone already, and never had it.

        A process that takes nothing for `hang_seconds` is killed: half of a frame is of no use.
        """
        call = Call()
        with self._lock:
            if self._gone:
                return None
            number = self._number = (self._number + 1) % (1 << 32)
            self._calls[number] = call
        with self._sending:  # answers are taken meanwhile
            try:
                frames.send(self._channel, Kind.BATCH, number, frames.pack_batch(batch, route))
            except OSError as error:  # else it dies in this moment: the reader tells
                if isinstance(error, BlockingIOError):
                    self.kill("hung")
        return call

    def kill(self, cause: str = "") -> None:
        """Ends the process at once, with any process that it started; calls end as lost."""
        self.cause = cause or self.cause
        if self._process.returncode is None:  # not waited for: the number is still its own
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def hang_up(self) -> None:
        """Has the process end by itself; calls in it end as lost."""
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)

    def reap(self) -> None:
        """Waits until the process is gone, not for long, and frees what it held."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_EXIT_SECONDS)
        self.kill()
        self._process.wait()
        if self._reader is not None:  # it finds out by the end of the connection, not of the socket
            self._reader.join(_EXIT_SECONDS)
        self._channel.close()

    def _read(self) -> None:
        """Takes answers until the process is gone; one that makes no sense ends it."""
        try:
            while (frame := frames.receive(self._channel)) is not None:
                with self._lock:
                    call = self._calls.pop(frame.number)
                call.settle(frame)
        except Exception as error:  # noqa: BLE001 - whatever it is, nothing is read behind it
            get_logger().error("engine_answer_unreadable", error=type(error).__name__)
            self.kill()
        with self._lock:
            self._gone = True
            left, self._calls = self._calls, {}
        for call in left.values():
            call.settle(None, hung=self.cause == "hung")
        self.ended.set()
