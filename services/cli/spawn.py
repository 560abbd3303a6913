"""Starts one service as a process of its own, and tells why it ended when it did."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from services.cli.logs import last_telling_line, log_end, open_log
from services.cli.processes import ProcessId, identify, is_alive
from services.runtime.exits import ExitCode, StartError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(slots=True)
class Child:
    """A service process that this command waits for; it outlives the command."""

    name: str
    process: ProcessId
    address: str
    log: Path
    popen: subprocess.Popen[bytes] | None
    """None when another command started it, and so knows its exit code."""
    log_start: int = 0
    """Where its lines begin in the log."""

    def check(self) -> None:
        """Raises StartError with the process's own exit code and reason when it has ended."""
        if self.popen is None:
            if not is_alive(self.process):
                raise StartError(ExitCode.UNAVAILABLE, self._reason())
            return
        returned = self.popen.poll()
        if returned is not None:
            known = returned in set(ExitCode) and returned != ExitCode.OK
            code = ExitCode(returned) if known else ExitCode.UNAVAILABLE
            raise StartError(code, self._reason())

    def release(self) -> None:
        """Lets the process live on without this command."""
        if self.popen is not None and self.popen.returncode is None:
            self.popen.returncode = 0  # else Python warns that it was not waited for

    def _reason(self) -> str:
        mark = f"lodestone-{self.name}: "
        line = last_telling_line(self.log, mark, start=self.log_start)
        return f"The {self.name} service ended: {line.removeprefix(mark)}"


def spawn_service(name: str, environment: Mapping[str, str], address: str, log: Path) -> Child:
    """Starts `python -m services.<name>` in a session of its own, so that Ctrl+C misses it."""
    if address.startswith("unix:"):
        # Left by a killed process: nothing else listens in this folder.
        Path(address.removeprefix("unix:")).unlink(missing_ok=True)
    with open_log(log) as file:
        log_start = log_end(log)
        popen = subprocess.Popen(  # noqa: S603 - our own modules
            [sys.executable, "-m", f"services.{name}"],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            cwd="/",
            env=dict(environment),
            start_new_session=True,
        )
    process = identify(popen.pid) or ProcessId(popen.pid, "gone")
    return Child(name, process, address, log, popen, log_start)
