"""What a benchmark tells: figures for the report, and lines for the person who waits."""

from __future__ import annotations

import sys
from typing import Any


def figure(value: float, goal: float | None = None, *, met: bool = True) -> dict[str, Any]:
    """Returns one entry of the result; without a goal it is a record."""
    return {"value": round(value, 4), "goal": goal, "met": met}


def say(line: str) -> None:
    """Tells a person how far the run is."""
    sys.stderr.write(line + "\n")
