"""A process is its pid and its start time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from services.cli.processes import identify, is_alive, send, terminate
from services.cli.spawn import spawn_service
from services.runtime.exits import StartError

if TYPE_CHECKING:
    from pathlib import Path


def _sleeper(code: str = "") -> subprocess.Popen[bytes]:
    program = f"{code}\nprint(flush=True)\nimport time\ntime.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    child.stdout.close()
    return child


def test_a_reused_pid_is_another_process() -> None:
    me = identify(os.getpid())
    assert me is not None

    assert is_alive(me)
    assert not is_alive(replace(me, started="another boot:1"))


def test_a_zombie_is_dead() -> None:
    child = _sleeper()
    process = identify(child.pid)
    assert process is not None
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

    assert not is_alive(process)
    child.wait()


def test_a_signal_never_reaches_another_process() -> None:
    child = _sleeper()
    process = identify(child.pid)
    assert process is not None

    send(replace(process, started="another"), signal.SIGKILL)

    assert child.poll() is None
    child.kill()
    child.wait()


def test_a_process_that_ignores_sigterm_is_killed_after_the_grace() -> None:
    child = _sleeper("import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)")
    process = identify(child.pid)
    assert process is not None

    polite = terminate(process, signal.SIGTERM, grace_seconds=0.2)

    assert not polite
    assert not is_alive(process)
    child.wait()


def test_a_process_that_obeys_is_not_killed() -> None:
    child = _sleeper()
    process = identify(child.pid)
    assert process is not None

    assert terminate(process, signal.SIGTERM, grace_seconds=10)
    child.wait()


def test_a_service_that_ends_at_once_is_told_of_by_its_own_lines(tmp_path: Path) -> None:
    """Red when the log's last line of its kind is taken, which an earlier start wrote."""
    log = tmp_path / "none.log"
    log.write_text("lodestone-none: the port is taken\n")

    child = spawn_service("none", os.environ, "127.0.0.1:1", log)
    assert child.popen is not None
    child.popen.wait()

    with pytest.raises(StartError, match=r"No module named services\.none"):
        child.check()
