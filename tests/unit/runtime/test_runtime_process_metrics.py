"""A process tells its build, and how late its event loop is."""

from __future__ import annotations

import asyncio
import time

from prometheus_client import REGISTRY

from services.runtime.process_metrics import process_observed


def _slow_wakes() -> float:
    """Returns how many wakes were more than 0.1 s late."""
    name = "lodestone_event_loop_lag_seconds"
    on_time = REGISTRY.get_sample_value(f"{name}_bucket", {"le": "0.1"}) or 0.0
    return (REGISTRY.get_sample_value(f"{name}_count") or 0.0) - on_time


async def test_a_loop_that_is_blocked_is_seen() -> None:
    """Planted once: a time to wake up that lies later than the one that was asked for."""
    before = _slow_wakes()

    async with process_observed("embed"):
        await asyncio.sleep(0)
        time.sleep(0.5)  # noqa: ASYNC251 - what is measured
        await asyncio.sleep(0.05)

    assert _slow_wakes() - before == 1


async def test_the_build_is_told() -> None:
    async with process_observed("embed"):
        pass

    labels = {"service": "embed", "version": "0.1.0"}
    assert REGISTRY.get_sample_value("lodestone_build_info", labels) == 1
