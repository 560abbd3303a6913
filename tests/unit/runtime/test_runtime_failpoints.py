"""Failpoints are off unless two variables say otherwise, and do what a test writes.

Planted bugs that turned these red: arming without the permission, counting from zero, a random
that is not seeded, a point that no code has.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from services.runtime import failpoints
from services.runtime.errors import DependencyUnavailableError
from services.runtime.exits import ExitCode, StartError
from services.runtime.failpoints import FailpointError, failpoint, failpoint_in_thread

if TYPE_CHECKING:
    from collections.abc import Iterator

_SERVICES = Path(failpoints.__file__).parent.parent
_USE = re.compile(r'failpoint(?:_in_thread)?\("([a-z.]+)"\)')


@pytest.fixture(autouse=True)
def _disarm() -> Iterator[None]:
    yield
    failpoints.arm({})


def _arm(text: str) -> None:
    failpoints.arm({failpoints.VARIABLE: text, failpoints.PERMISSION: "1"})


async def _visits(name: str, times: int) -> list[bool]:
    """Returns of each visit whether it failed."""
    failed = []
    for _ in range(times):
        try:
            await failpoint(name)
            failed.append(False)
        except FailpointError:
            failed.append(True)
    return failed


def _refused(text: str) -> str:
    with pytest.raises(StartError) as caught:
        _arm(text)
    assert caught.value.code is ExitCode.USAGE
    return caught.value.message


async def test_a_point_that_is_not_armed_does_nothing() -> None:
    _arm("io.scan.before=error")

    assert await _visits("indexer.commit.before", 3) == [False] * 3


@pytest.mark.parametrize(
    ("when", "failing"),
    [
        ("", [True, False, False, False]),
        ("@3", [False, False, True, False]),
        ("@2+", [False, True, True, True]),
        ("%1", [True] * 4),
    ],
)
async def test_a_count_says_which_visits_fail(when: str, failing: list[bool]) -> None:
    _arm(f"indexer.commit.before=error{when}")

    assert await _visits("indexer.commit.before", 4) == failing


async def test_the_same_seed_fails_the_same_visits() -> None:
    drawn = []
    for seed in (7, 7, 8):
        _arm(f"seed={seed},io.scan.before=error%0.5,io.scan.after=error%0.5")
        drawn.append([await _visits(name, 40) for name in ("io.scan.before", "io.scan.after")])

    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0][0] != drawn[0][1]
    assert 5 < sum(drawn[0][0]) < 35


async def test_an_error_may_be_one_that_passes() -> None:
    _arm("embed.forward.before=error:unavailable")

    with pytest.raises(DependencyUnavailableError):
        await failpoint("embed.forward.before")


async def test_a_sleep_leaves_the_loop_free() -> None:
    _arm("io.read.before=sleep:0.2")
    started = time.monotonic()
    sleeping = asyncio.create_task(failpoint("io.read.before"))

    await asyncio.sleep(0)
    free_after = time.monotonic() - started
    await sleeping

    assert free_after < 0.15 < time.monotonic() - started


def test_a_thread_sleeps_itself() -> None:
    _arm("io.read.before=sleep:0.05")
    started = time.monotonic()

    failpoint_in_thread("io.read.before")

    assert time.monotonic() - started >= 0.05


@pytest.mark.parametrize(
    ("action", "code"),
    [("kill", -signal.SIGKILL), ("exit:7", 7), ("exit", int(ExitCode.FAILED))],
)
def test_a_process_dies_where_it_is_told_to(action: str, code: int) -> None:
    script = (
        "import os\n"
        "from services.runtime import failpoints\n"
        "failpoints.arm(os.environ)\n"
        "failpoints.failpoint_in_thread('io.scan.before')\n"
    )
    environment = {
        **os.environ,
        failpoints.VARIABLE: f"io.scan.before={action}",
        failpoints.PERMISSION: "1",
    }

    done = subprocess.run([sys.executable, "-c", script], env=environment, check=False)

    assert done.returncode == code


def test_failpoints_without_the_permission_are_refused() -> None:
    with pytest.raises(StartError, match=failpoints.PERMISSION) as caught:
        failpoints.arm({failpoints.VARIABLE: "io.scan.before=error"})

    assert caught.value.code is ExitCode.USAGE
    failpoint_in_thread("io.scan.before")  # nothing was armed


def test_a_misspelt_point_is_refused_with_the_right_one() -> None:
    assert "Did you mean indexer.commit.before?" in _refused("indexer.comit.before=kill")


@pytest.mark.parametrize(
    "wrong",
    ["explode", "kill@0", "kill@", "sleep", "sleep:9999", "exit:999", "error:soon", "kill:1", ""],
)
def test_a_fault_that_makes_no_sense_is_refused(wrong: str) -> None:
    assert "io.scan.before" in _refused(f"io.scan.before={wrong}")


def test_every_declared_point_stands_once_in_the_code_of_its_service() -> None:
    found = [
        (match, path.relative_to(_SERVICES).parts[0])
        for path in _SERVICES.rglob("*.py")
        for match in _USE.findall(path.read_text("utf-8"))
    ]

    assert sorted(name for name, _ in found) == sorted(failpoints.POINTS)
    assert all(name.split(".")[0] == service for name, service in found)
