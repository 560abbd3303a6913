"""What every benchmark says: figures with their goals, and how far it is."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def figure(
    value: float, goal: float | None = None, *, met: bool = True, digits: int = 4
) -> dict[str, Any]:
    """Returns one entry of the result; without a goal it is a record."""
    return {"value": round(value, digits), "goal": goal, "met": met}


def cpu_seconds_of(pid: int) -> float:
    """Returns the CPU time of a process and of its children that run: an engine is one."""
    process = psutil.Process(pid)
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    return float(sum(each.user + each.system for each in times))


def say(line: str) -> None:
    """Tells a person how far the run is."""
    sys.stderr.write(line + "\n")


def print_measured(measure: Callable[[Path], Mapping[str, Any]]) -> None:
    """Measures in a temporary folder, which goes afterwards; the last line is JSON."""
    scratch = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        sys.stdout.write(json.dumps(measure(scratch)) + "\n")
    finally:
        shutil.rmtree(scratch)
