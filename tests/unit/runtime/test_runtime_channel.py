"""Channels retry inside the deadline and find a restarted server again."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from services.runtime.channel import connect
from tests.unit.runtime.running import Counters, eventually, running, samples
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


async def test_what_no_replica_can_do_is_asked_again_after_as_long_as_the_server_says(
    service: Running,
) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()

    answer = await embed(service.channel, "away", timeout=10)

    assert len(answer.results) == 1
    assert service.app.events.count("called") == 5
    assert loop.time() - began >= (1 + 2 + 4) * 0.2 * 0.75  # gRPC's own are 0.7 s at most


async def test_a_call_that_the_server_dropped_is_made_again(service: Running) -> None:
    answer = await embed(service.channel, "dropped", timeout=5)

    assert len(answer.results) == 1
    assert service.app.events.count("called") == 2


async def test_a_call_that_its_caller_cancelled_is_not_made_again(service: Running) -> None:
    call = asyncio.ensure_future(embed(service.channel, "wait"))
    await eventually(lambda: "inside" in service.app.events)
    call.cancel()

    await eventually(lambda: "cancelled" in service.app.events)
    await asyncio.sleep(0.3)  # longer than the first backoff

    assert service.app.events.count("called") == 1


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


async def test_calls_that_meet_a_server_at_its_end_are_made_elsewhere() -> None:
    """Red without health checks: calls are in a server's queue when it stops, and it drops them."""
    ports = [_free_port() for _ in range(2)]
    channel = connect(f"ipv4:127.0.0.1:{ports[0]},127.0.0.1:{ports[1]}")
    stopping = asyncio.Event()

    async def call_until_stopped() -> None:
        while not stopping.is_set():
            await embed(channel, "echo", timeout=10, wait_for_ready=True)

    async with running(f"127.0.0.1:{ports[0]}"):
        for _ in range(3):
            async with running(f"127.0.0.1:{ports[1]}") as second:
                stopping.clear()
                calls = [asyncio.create_task(call_until_stopped()) for _ in range(64)]
                await _called(second, 50)
                await second.stop()
                stopping.set()
                await asyncio.gather(*calls)
        await channel.close()


async def test_a_replica_that_drains_is_called_no_more() -> None:
    """Red without health checks in the service config: it refuses every second call."""
    ports = [_free_port() for _ in range(2)]
    async with (
        running(f"127.0.0.1:{ports[0]}") as first,
        running(f"127.0.0.1:{ports[1]}") as second,
        connect(f"ipv4:127.0.0.1:{ports[0]},127.0.0.1:{ports[1]}") as channel,
    ):
        while second.app.events.count("called") == 0:
            await embed(channel, "echo", timeout=5, wait_for_ready=True)
        second.app.may_drain.clear()
        second.run.stop()
        await eventually(lambda: "drain" in second.app.events)
        await asyncio.sleep(0.1)  # as long as news of it may travel
        counted = Counters(samples())
        before = first.app.events.count("called")

        for _ in range(20):
            await embed(channel, "echo", timeout=5)

        assert first.app.events.count("called") == before + 20
        assert counted.grown("grpc_server_started_total", grpc_method="Embed") == 20


async def _called(service: Running, calls: int) -> None:
    await eventually(lambda: service.app.events.count("called") > calls)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
