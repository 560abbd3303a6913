"""The life of a service: not ready, ready, full, draining, gone."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from lodestone.io.v1 import watch_service_pb2 as watch_pb2
from lodestone.io.v1 import watch_service_pb2_grpc as watch_grpc
from services.runtime.channel import connect
from services.runtime.exits import ExitCode, StartError
from services.runtime.health import LIVENESS
from tests.unit.runtime.running import eventually, running
from tests.unit.runtime.sample_calls import TREE, drained, embed, failure_of, scan
from tests.unit.runtime.sample_service import SampleApp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import grpc

    from tests.unit.runtime.running import Running

State = health_pb2.HealthCheckResponse.ServingStatus


async def _health(channel: grpc.aio.Channel, name: str = "") -> int:
    request = health_pb2.HealthCheckRequest(service=name)
    answer = await health_pb2_grpc.HealthStub(channel).Check(
        request, wait_for_ready=True, timeout=5
    )
    return int(answer.status)


async def test_health_tells_the_truth_before_during_and_after(address: str) -> None:
    app = SampleApp()
    app.may_start.clear()
    seen: list[int] = []

    async def watch(channel: grpc.aio.Channel) -> None:
        request = health_pb2.HealthCheckRequest()
        stub = health_pb2_grpc.HealthStub(channel)
        async for answer in stub.Watch(request, wait_for_ready=True):
            seen.append(answer.status)  # noqa: PERF401 - looked at while it grows

    async with running(address, app, wait=False) as service:
        watching = asyncio.create_task(failure_of(watch(service.channel)))
        await eventually(lambda: seen)
        assert await _health(service.channel) == State.NOT_SERVING

        app.may_start.set()
        await service.ready()
        await eventually(lambda: len(seen) == 2)
        names = ("", *app.service_names)
        assert [await _health(service.channel, name) for name in names] == [State.SERVING] * 4

        code = await service.stop()

        assert code == ExitCode.OK
        assert (await watching).code == "UNAVAILABLE"
        assert seen == [State.NOT_SERVING, State.SERVING, State.NOT_SERVING]


async def test_health_of_a_service_that_does_not_exist_is_not_found(service: Running) -> None:
    failure = await failure_of(_health(service.channel, "no.such.Service"))

    assert failure.code == "NOT_FOUND"


async def test_reflection_lists_the_services_and_describes_their_messages(
    service: Running,
) -> None:
    async def questions() -> AsyncIterator[Any]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        yield reflection_pb2.ServerReflectionRequest(
            file_containing_symbol="lodestone.embed.v1.EmbedRequest"
        )

    stub = reflection_pb2_grpc.ServerReflectionStub(service.channel)
    listed, described = [answer async for answer in stub.ServerReflectionInfo(questions())]

    names = {item.name for item in listed.list_services_response.service}
    assert names == {
        *service.app.service_names,
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    assert described.file_descriptor_response.file_descriptor_proto


async def test_a_call_before_the_start_is_done_is_told_to_come_back(address: str) -> None:
    app = SampleApp()
    app.may_start.clear()
    async with running(address, app, wait=False) as service:
        assert await _health(service.channel) == State.NOT_SERVING

        failure = await failure_of(embed(service.channel, "echo"))

    assert (failure.code, failure.message) == ("UNAVAILABLE", "The server is starting.")
    assert failure.detail(error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() == 500


async def test_a_retried_call_gets_through_once_the_start_is_done(address: str) -> None:
    """UNAVAILABLE is retried by the channel, inside the call's deadline."""
    app = SampleApp()
    app.may_start.clear()
    async with running(address, app, wait=False) as service:
        assert await _health(service.channel) == State.NOT_SERVING
        call = asyncio.ensure_future(embed(service.channel, "echo", timeout=5))
        await asyncio.wait((call,), timeout=0.05)

        app.may_start.set()

        assert len((await call).results) == 1


async def test_calls_over_the_limit_are_refused_and_those_inside_go_on(address: str) -> None:
    async with running(address, max_concurrent_calls="2") as service:
        inside = [asyncio.ensure_future(embed(service.channel, "wait")) for _ in range(2)]
        await eventually(lambda: service.app.events.count("inside") == 2)

        failure = await failure_of(embed(service.channel, "echo"))

        assert failure.code == "RESOURCE_EXHAUSTED"
        assert failure.info.reason == "ERROR_REASON_OVERLOADED"
        assert failure.info.metadata["limit"] == "2"
        service.app.may_answer.set()
        assert len(await asyncio.gather(*inside)) == 2
        assert (await embed(service.channel, "echo")).results


async def test_calls_in_flight_finish_while_new_ones_are_refused(address: str) -> None:
    async with running(address) as service, connect(address) as other:
        await embed(other, "echo")
        in_flight = asyncio.ensure_future(embed(service.channel, "wait"))
        await eventually(lambda: "inside" in service.app.events)
        service.app.may_drain.clear()  # holds the server in its drain, still listening
        service.run.stop()
        await eventually(lambda: "drain" in service.app.events)

        refused = await failure_of(embed(other, "echo"))

        service.app.may_answer.set()
        assert (await in_flight).results
        assert refused.code == "UNAVAILABLE"
        assert refused.info.reason == "ERROR_REASON_SHUTTING_DOWN"


async def test_an_open_watch_does_not_hold_the_stop_for_the_whole_grace(address: str) -> None:
    async with running(address, drain_seconds="30") as service:
        stub = watch_grpc.WatchServiceStub(service.channel)
        states: list[Any] = []
        request = watch_pb2.WatchTreeRequest(tree=TREE)
        watching = asyncio.create_task(failure_of(drained(stub.WatchTree(request), states)))
        await eventually(lambda: states)

        async with asyncio.timeout(5):
            await service.stop()

        failure = await watching
        assert (failure.code, failure.message) == ("UNAVAILABLE", "The watch ends.")


async def test_a_call_that_outlives_the_grace_is_cancelled_before_the_close(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with running(address, drain_seconds="0.1") as service:
        call = asyncio.create_task(failure_of(embed(service.channel, "wait")))
        await eventually(lambda: "inside" in service.app.events)

        await service.stop()

        assert service.app.events[-3:] == ["drain", "cancelled", "close"]
        assert (await call).code in {"UNAVAILABLE", "CANCELLED"}
    assert "stop_step_timed_out" not in capsys.readouterr().err


async def test_a_stream_that_nobody_reads_is_cleaned_up_before_the_close(address: str) -> None:
    """Its generator is suspended in `yield` and still gives back what it holds."""
    async with running(address, drain_seconds="0.1") as service:
        call = scan(service.channel, "endless")
        await call.read()

        await service.stop()

        assert service.app.events[-3:] == ["drain", "scan closed", "close"]
        call.cancel()


async def test_a_start_that_fails_releases_everything(address: str) -> None:
    app = SampleApp()
    app.start_error = StartError(ExitCode.MODEL, "No model.")
    async with running(address, app, wait=False) as service:
        with pytest.raises(StartError, match="No model"):
            await service.task
        service.task = asyncio.create_task(_nothing())

    assert app.events == ["start", "close"]
    async with running(address) as second:  # the address is free again
        assert await _health(second.channel) == State.SERVING


async def test_metrics_are_served_and_gone_after_the_stop(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with running(address, metrics_listen="127.0.0.1:0") as service:
        await embed(service.channel, "echo")
        lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
        listen = next(line["listen"] for line in lines if line["event"] == "metrics_ready")

        page = await asyncio.to_thread(_get, f"http://{listen}/metrics")

        assert 'grpc_server_handled_total{grpc_code="OK"' in page
        await service.stop()
        with pytest.raises(OSError, match="refused"):
            await asyncio.to_thread(_get, f"http://{listen}/metrics")


async def test_nothing_is_left_in_the_loop_after_a_stop(address: str) -> None:
    async with running(address) as service:
        await embed(service.channel, "echo")
        await failure_of(embed(service.channel, "crash"))
        await service.channel.close()
        await service.stop()

        await eventually(lambda: asyncio.all_tasks() == {asyncio.current_task()})


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return str(answer.read().decode())


async def _nothing() -> int:
    return 0


async def test_the_process_is_live_whatever_it_waits_for(address: str) -> None:
    """A probe that restarts asks for this name: red with the state of the whole server."""
    app = SampleApp()
    app.may_start.clear()
    async with running(address, app, wait=False) as service:
        health = health_pb2_grpc.HealthStub(service.channel)
        live = await health.Check(
            health_pb2.HealthCheckRequest(service=LIVENESS), wait_for_ready=True
        )
        ready = await health.Check(health_pb2.HealthCheckRequest())

    assert live.status == health_pb2.HealthCheckResponse.SERVING
    assert ready.status == health_pb2.HealthCheckResponse.NOT_SERVING
