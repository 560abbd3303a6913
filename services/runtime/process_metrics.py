"""What every process tells of itself: its build, and how late its event loop is."""

from __future__ import annotations

import asyncio
import importlib.metadata
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

BUILD_INFO = Gauge(
    "lodestone_build_info", "1, with the service and its version.", ("service", "version")
)
LOOP_LAG_SECONDS = Histogram(
    "lodestone_event_loop_lag_seconds",
    "How much later than asked a task of the event loop woke up.",
    buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
_INTERVAL_SECONDS = 0.25


def told_from_zero(metric: Counter | Gauge, *values: str) -> None:
    """Exports a metric's series of one label before anything happened.

    A counter that first appears with a count of 1 never grew, as far as a query can see.
    """
    for value in values:
        metric.labels(value)


@asynccontextmanager
async def process_observed(service: str) -> AsyncIterator[None]:
    """Tells the build, and measures the event loop's lag for as long as the block runs."""
    disable_created_metrics()  # type: ignore[no-untyped-call]  # they double the series; process_start_time_seconds tells the same
    BUILD_INFO.labels(service, importlib.metadata.version("lodestone")).set(1)
    measuring = asyncio.create_task(_measure_lag(), name="loop-lag")
    try:
        yield
    finally:
        measuring.cancel()
        await asyncio.gather(measuring, return_exceptions=True)


async def _measure_lag() -> None:
    clock = asyncio.get_running_loop().time
    while True:
        due = clock() + _INTERVAL_SECONDS
        await asyncio.sleep(_INTERVAL_SECONDS)
        LOOP_LAG_SECONDS.observe(max(0.0, clock() - due))
