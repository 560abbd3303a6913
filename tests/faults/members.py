"""Processes of one service each, that a test starts, kills, freezes and starts again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from services.runtime import failpoints
from tests.support.stack import clean_environment, wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

READY_SECONDS = 30.0
_READY = '"service_ready"'


@dataclass
class Member:
    """One process, under a name of its own; it comes back on the address that it had."""

    name: str
    service: str
    folder: Path
    settings: Mapping[str, str]
    """Environment variables, without `LODESTONE_`."""

    extra: Mapping[str, str] = field(default_factory=dict)
    """Environment variables as they are, such as one that preloads a library."""

    port: int = 0
    """Port of loopback that it listens on; 0 is a Unix socket."""

    prefix: Sequence[str] = ()
    """Command that runs it, such as one that lowers a limit first."""

    starts: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held by who kills it and starts it again, where several do."""

    process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        """Where it listens."""
        return self.folder / self.name

    @property
    def address(self) -> str:
        """The address that it listens on."""
        return f"127.0.0.1:{self.port}" if self.port else f"unix:{self.socket}"

    @property
    def log(self) -> str:
        """What it wrote in all its lives."""
        path = self.folder / f"{self.name}.log"
        return path.read_text("utf-8", "replace") if path.exists() else ""

    @property
    def alive(self) -> bool:
        """Whether it runs, or is frozen."""
        return self.process is not None and self.process.poll() is None

    @property
    def frozen(self) -> bool:
        """Whether it is stopped by SIGSTOP."""
        with contextlib.suppress(FileNotFoundError), Path(f"/proc/{self.pid}/stat").open() as stat:
            return stat.read().rpartition(")")[2].split()[0] == "T"
        return False

    @property
    def pid(self) -> int:
        """The process that runs."""
        assert self.process is not None
        return self.process.pid

    def spawn(self, failing: str = "") -> None:
        """Starts it and returns at once.

        Args:
            failing: what it is to do at its failpoints, as `LODESTONE_FAILPOINTS` says it.
        """
        assert not self.alive
        settings = {f"LODESTONE_{name}": value for name, value in self.settings.items()}
        armed = {failpoints.VARIABLE: failing, failpoints.PERMISSION: "1"} if failing else {}
        self._remove_socket_of_the_dead()
        self.starts += 1
        with self._open_log() as log:
            log.write(f"start {self.starts}\n")
            log.flush()
            self.process = subprocess.Popen(
                [*self.prefix, sys.executable, "-m", f"services.{self.service}"],
                env={
                    **clean_environment(),
                    "LODESTONE_LOG_FORMAT": "json",
                    f"LODESTONE_{self.service.upper()}_LISTEN": self.address,
                    **settings,
                    **armed,
                    **self.extra,
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def start(self, failing: str = "") -> None:
        """Starts it and returns once it serves."""
        self.spawn(failing)
        self.wait_ready()

    def wait_ready(self) -> None:
        """Returns once the process that was started last serves."""
        life = f"start {self.starts}\n"

        def ready() -> bool:
            text = self.log.rpartition(life)[2]
            assert self.alive or _READY in text, f"{self.name} did not start: {text[-2000:]}"
            return _READY in text

        wait_until(ready, READY_SECONDS, f"{self.name} serves")

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the process, if it lives."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends the process at once, with all that it started."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)

    def wait(self, timeout_seconds: float) -> int:
        """Returns the exit code once the process has ended by itself."""
        assert self.process is not None
        return self.process.wait(timeout_seconds)

    def terminate(self, timeout_seconds: float = 15.0) -> int:
        """Stops the process in its orderly way; returns its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout_seconds)

    def descriptors(self) -> int:
        """Returns how many files and sockets the process has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))  # noqa: PTH208 - names alone, no stat

    def _open_log(self) -> TextIO:
        return (self.folder / f"{self.name}.log").open("a", encoding="utf-8")

    def _remove_socket_of_the_dead(self) -> None:
        # A frozen process of another life would still answer there; a dead one does not.
        with contextlib.suppress(FileNotFoundError):
            self.socket.unlink()


def wait_died(member: Member, timeout_seconds: float) -> float:
    """Returns when a member died by SIGKILL, as its failpoint says; fails when it does not."""
    code = member.wait(timeout_seconds)
    assert code == -signal.SIGKILL, (member.name, code, member.log[-2000:])
    return time.monotonic()
