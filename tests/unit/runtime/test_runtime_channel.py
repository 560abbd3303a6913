"""Channels retry inside the deadline and find a restarted server again."""

from __future__ import annotations

import asyncio
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
