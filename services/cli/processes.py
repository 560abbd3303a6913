"""Processes by pid and start time, so that a reused pid is never taken for one of ours."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

_DEAD_STATES = frozenset("ZXx")
_START_TICKS_FIELD = 19  # counted after the command, which may hold spaces and brackets


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process of this boot: a pid alone may be reused."""

    pid: int
    started: str
    """Boot id and start time in clock ticks."""


def identify(pid: int) -> ProcessId | None:
    """Returns the process that has this pid now, or None when it is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat[stat.rindex(b")") + 2 :].decode("ascii").split()
    if fields[0] in _DEAD_STATES:
        return None
    return ProcessId(pid, f"{boot}:{fields[_START_TICKS_FIELD]}")


def is_alive(process: ProcessId) -> bool:
    """Tells whether exactly this process runs."""
    return identify(process.pid) == process


def command_line(pid: int) -> list[str]:
    """Returns the arguments of a process; empty when it is gone."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [part.decode("utf-8", "surrogateescape") for part in raw.rstrip(b"\0").split(b"\0")]


def send(process: ProcessId, signal_number: signal.Signals) -> None:
    """Signals the process when it still runs."""
    if is_alive(process):
        try:
            os.kill(process.pid, signal_number)
        except ProcessLookupError:
            return


def wait_gone(process: ProcessId, timeout_seconds: float) -> bool:
    """Waits until the process is gone; returns whether it is."""
    deadline = time.monotonic() + timeout_seconds
    while is_alive(process):
        _reap(process.pid)
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)
    _reap(process.pid)
    return True


def terminate(process: ProcessId, polite: signal.Signals, grace_seconds: float) -> bool:
    """Asks the process to end, then kills it.

    Returns:
        Whether it ended by itself within the grace.
    """
    send(process, polite)
    if wait_gone(process, grace_seconds):
        return True
    send(process, signal.SIGKILL)
    wait_gone(process, 5.0)
    return False


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return  # another command started it
