"""Long work of the event loop, in turns with what others wait for."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

T = TypeVar("T")
R = TypeVar("R")

_TURN_SECONDS = 0.002
"""Longest work between two turns of others, an item aside: a call takes some dozen turns."""


async def mapped(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Returns what a function gives for each item."""
    results = []
    began = time.perf_counter()
    for item in items:
        results.append(function(item))
        if time.perf_counter() - began > _TURN_SECONDS:
            await asyncio.sleep(0)
            began = time.perf_counter()
    return results
