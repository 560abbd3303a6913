"""Channels retry inside the deadline and find a restarted server again."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from services.runtime.channel import connect
from tests.unit.runtime.running import eventually, running
from tests.unit.runtime.sample_calls import embed, failure_of

if TYPE_CHECKING:
    from tests.unit.runtime.running import Running


async def test_a_channel_finds_a_server_that_was_restarted(address: str) -> None:
    async with connect(address) as channel:
        async with running(address):
            await embed(channel, "echo", timeout=5)
        async with running(address):
            answer = await embed(channel, "echo", timeout=5, wait_for_ready=True)

    assert len(answer.results) == 1


async def test_a_call_to_nobody_fails_within_its_deadline(address: str) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with connect(address) as channel:
        failure = await failure_of(embed(channel, "echo", timeout=0.3, wait_for_ready=True))

    assert failure.code == "DEADLINE_EXCEEDED"
    assert loop.time() - began < 1


async def test_a_service_that_is_away_for_a_moment_is_asked_again(service: Running) -> None:
    answer = await embed(service.channel, "flaky", timeout=5)

    assert len(answer.results) == 1
    assert service.app.events.count("called") == 3


async def test_an_error_that_a_retry_cannot_mend_is_not_retried(service: Running) -> None:
    await failure_of(embed(service.channel, "missing", timeout=5))
    calls = service.app.events.count("called")

    assert calls == 1


async def test_a_closed_channel_fails_a_call_in_flight(service: Running) -> None:
    call = asyncio.ensure_future(embed(service.channel, "wait"))
    await eventually(lambda: "inside" in service.app.events)

    await service.channel.close()

    await asyncio.wait((call,), timeout=5)
    assert call.done()
    assert call.cancelled() or call.exception() is not None


async def test_calls_are_balanced_over_the_addresses_of_a_name() -> None:
    """Red without round robin in the service config: all calls go to the first address."""
    ports = [_free_port() for _ in range(2)]
    async with (
        running(f"127.0.0.1:{ports[0]}") as first,
        running(f"127.0.0.1:{ports[1]}") as second,
    ):
        channel = connect(f"ipv4:127.0.0.1:{ports[0]},127.0.0.1:{ports[1]}")
        for _ in range(20):
            await embed(channel, "echo")
        await channel.close()

        calls = [service.app.events.count("called") for service in (first, second)]

    assert sum(calls) == 20
    assert min(calls) >= 5  # the second may connect some calls later


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
