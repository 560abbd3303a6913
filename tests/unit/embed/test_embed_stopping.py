"""SIGTERM while the engine is away, frozen or not there yet: the service ends all the same."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lodestone.embed.v1 import embed_service_pb2 as pb
from lodestone.embed.v1 import embed_service_pb2_grpc, model_service_pb2_grpc
from lodestone.embed.v1.model_service_pb2 import ListModelsRequest
from services.runtime.channel import connect
from tests.support.embeddings_api import Step, serving_embeddings
from tests.unit.embed.harness import MODELS, eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.slow
_DRAIN_SECONDS = 1.0
_GRACE_SECONDS = _DRAIN_SECONDS + 2.0


def _request(model: str = "hashing", text: str = "def first(): pass") -> pb.EmbedRequest:
    return pb.EmbedRequest(
        model=f"models/{model}",
        options=pb.EmbedOptions(purpose=pb.PURPOSE_DOCUMENT),
        texts=[text],
    )


@asynccontextmanager
async def _process(address: str, **settings: str) -> AsyncIterator[subprocess.Popen[bytes]]:
    """Yields the service as a process of its own."""
    given = {"LISTEN": address, "DRAIN_SECONDS": str(_DRAIN_SECONDS), "MODEL": "hashing"}
    named = {f"LODESTONE_EMBED_{name}": value for name, value in {**given, **settings}.items()}
    process = subprocess.Popen(  # noqa: ASYNC220 - a start is short, and `wait` is in a thread
        [sys.executable, "-m", "services.embed"],
        env={**os.environ, **named},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


def _engines(service: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process(service.pid).children()
        if child.status() != psutil.STATUS_ZOMBIE
        and "services.embed.hosting.child" in child.cmdline()
    ]


async def _serving(channel: grpc.aio.Channel) -> None:
    watch = health_pb2_grpc.HealthStub(channel).Watch(
        health_pb2.HealthCheckRequest(), timeout=100, wait_for_ready=True
    )
    async for state in watch:
        if state.status == health_pb2.HealthCheckResponse.SERVING:
            watch.cancel()
            return


async def _end_seconds(service: subprocess.Popen[bytes]) -> float:
    """Returns how long the service takes to end after SIGTERM."""
    started = time.monotonic()
    service.send_signal(signal.SIGTERM)
    await asyncio.to_thread(service.wait, 60)
    return time.monotonic() - started


async def _end_of(call: asyncio.Future[pb.EmbedResponse]) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call
    return failure.value.code()


@pytest.mark.parametrize("fault", ["frozen", "away"])
async def test_a_stop_waits_for_no_engine(address: str, fault: str) -> None:
    """Red when nothing ends the wait: 30 s for a frozen engine, 30 s for one that is away.

    An engine is away when it was killed and the next one froze while it loaded.
    """
    async with _process(address, ISOLATION="process") as service, connect(address) as channel:
        stub = embed_service_pb2_grpc.EmbedServiceStub(channel)
        await stub.Embed(_request(), timeout=30, wait_for_ready=True)
        (engine,) = _engines(service)
        if fault == "away":
            engine.kill()
            await eventually(lambda: [e for e in _engines(service) if e.pid != engine.pid])
            (engine,) = _engines(service)
        engine.suspend()
        call = asyncio.ensure_future(stub.Embed(_request(), timeout=60))
        await asyncio.sleep(0.2)  # nothing tells from outside that a call waits for the engine

        seconds = await _end_seconds(service)
        code = await _end_of(call)
        await eventually(lambda: not engine.is_running())

    assert seconds < _GRACE_SECONDS
    assert code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


async def test_a_stop_waits_for_no_engine_that_freezes_at_the_first_start(address: str) -> None:
    async with _process(address, ISOLATION="process") as service:
        await eventually(lambda: _engines(service), 30)
        (engine,) = _engines(service)
        engine.suspend()

        assert await _end_seconds(service) < _GRACE_SECONDS


async def test_a_stop_waits_for_no_text_that_is_tokenized(address: str) -> None:
    """Red when the process ends with its threads: the service is gone, and that text goes on."""
    settings = {"MODEL": "minilm", "CACHE_DIR": str(MODELS), "BACKEND": "openvino"}
    word = "\u1100\u1161\u11a8" * (3 << 21)  # each sign is put together: tens of seconds
    limits = {"MAX_TEXT_CHARS": str(len(word))}
    async with _process(address, **settings, **limits) as service, connect(address) as channel:
        stub = embed_service_pb2_grpc.EmbedServiceStub(channel)
        await _serving(channel)
        process = psutil.Process(service.pid)
        before = process.cpu_times().user
        call = asyncio.ensure_future(stub.Embed(_request("all-minilm-l6-v2", word), timeout=60))
        await eventually(lambda: process.cpu_times().user > before + 1)

        seconds = await _end_seconds(service)
        code = await _end_of(call)

    assert seconds < _GRACE_SECONDS
    assert code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


@pytest.mark.parametrize("known_size", [True, False])
async def test_a_stop_waits_for_no_provider(address: str, *, known_size: bool) -> None:
    """Red when a thread waits for the provider: 20 s of a request, or 60 s of retries.

    Without a size in the settings the provider is asked at the start, and does not answer either.
    """
    with serving_embeddings() as api:
        api.always = Step(hang=True)
        settings = {
            "MODEL": "openai:code",
            "REMOTE_URL": api.url,
            "REMOTE_DIMENSIONS": "384" if known_size else "0",
        }
        async with _process(address, **settings) as service, connect(address) as channel:
            if known_size:
                models = model_service_pb2_grpc.ModelServiceStub(channel)
                await models.ListModels(ListModelsRequest(), timeout=30, wait_for_ready=True)
            stub = embed_service_pb2_grpc.EmbedServiceStub(channel)
            call = asyncio.ensure_future(stub.Embed(_request("code"), timeout=60))
            await eventually(lambda: api.requests, 30)

            seconds = await _end_seconds(service)
            code = await _end_of(call)

    assert seconds < _GRACE_SECONDS
    assert code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
