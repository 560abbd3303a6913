"""A sample service that runs in the test's own loop, and what its calls counted."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prometheus_client import REGISTRY

from services.runtime.channel import connect
from services.runtime.server import ServiceRun
from services.runtime.settings import load_settings
from tests.unit.runtime.sample_service import SampleApp, SampleSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import grpc


@dataclass
class Running:
    """A sample service and a channel to it."""

    app: SampleApp
    run: ServiceRun
    task: asyncio.Task[int]
    channel: grpc.aio.Channel
    address: str

    async def ready(self) -> None:
        """Waits until the service serves."""
        await eventually(lambda: self.run.serving or self.task.done())

    async def stop(self) -> int:
        """Stops the service; returns its exit code."""
        self.run.stop()
        return await self.task


@dataclass(frozen=True)
class Counters:
    """What the metrics of gRPC calls have grown by since the test began."""

    before: dict[tuple[str, frozenset[tuple[str, str]]], float]

    def grown(self, name: str, **labels: str) -> float:
        """Returns the growth of all series of a name that carry the labels."""
        now = samples()
        return sum(
            value - self.before.get(key, 0.0)
            for key, value in now.items()
            if key[0] == name and labels.items() <= dict(key[1]).items()
        )


def samples() -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for metric in REGISTRY.collect()
        for sample in metric.samples
    }


async def eventually(condition: Callable[[], Any], timeout_seconds: float = 5.0) -> None:
    """Waits until a condition holds; fails when it does not in time."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.002)


@asynccontextmanager
async def running(
    address: str, app: SampleApp | None = None, *, wait: bool = True, **settings: str
) -> AsyncIterator[Running]:
    """Runs a sample service on an address; settings are named without their prefix."""
    app = app or SampleApp()
    fields = SampleSettings.model_fields
    environment = {
        str(fields[name].validation_alias or f"LODESTONE_EMBED_{name.upper()}"): value
        for name, value in settings.items()
    }
    loaded = load_settings(SampleSettings, {"LODESTONE_EMBED_LISTEN": address, **environment})
    run = ServiceRun(loaded, app)
    task = asyncio.create_task(run.serve())
    service = Running(app, run, task, connect(address), address)
    try:
        if wait:
            await service.ready()
        yield service
    finally:
        app.may_start.set()
        app.may_drain.set()
        app.may_answer.set()
        await service.channel.close()
        await service.stop()
