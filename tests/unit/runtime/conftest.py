"""Fixtures: a sample service that serves, its counters and its spans."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import structlog

from services.runtime import log
from tests.unit.runtime.running import Counters, Running, running, samples

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _logs() -> Iterator[None]:
    """Logs go where a service's logs go, so that a test can read them."""
    log.configure("embed", "info", "json")
    yield
    structlog.reset_defaults()


@pytest.fixture
def address(tmp_path: Path) -> str:
    """A free Unix socket's address."""
    return f"unix:{tmp_path}/s"


@pytest.fixture
async def service(address: str) -> AsyncIterator[Running]:
    """A sample service that serves."""
    async with running(address) as started:
        yield started


@pytest.fixture
def counters() -> Counters:
    """The counters of gRPC calls, from now on."""
    return Counters(samples())
