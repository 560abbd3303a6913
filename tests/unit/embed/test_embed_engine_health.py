"""What health says of engines that are lost and come back."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lodestone.embed.v1 import embed_service_pb2 as pb
from lodestone.embed.v1 import embed_service_pb2_grpc
from services.embed.engine_health import EngineHealth
from services.embed.model import ModelId
from tests.unit.embed.harness import engine_process, service


async def test_health_knows_of_an_engine_that_was_lost_before_it_was_asked() -> None:
    """Red when changes alone are told: one that dies as the service starts leaves it SERVING."""
    health = EngineHealth()
    health.teller_of(ModelId("code"))(False)
    await asyncio.sleep(0)
    told: list[bool] = []

    health.report_to(told.append)

    assert told == [False]


@pytest.mark.slow
async def test_health_says_not_serving_until_the_engine_is_back(address: str) -> None:
    """Red when health is not told: it stays SERVING while every text fails."""
    serving = health_pb2.HealthCheckResponse.SERVING
    async with service(address, isolation="process") as channel:
        stub = embed_service_pb2_grpc.EmbedServiceStub(channel)
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        states = aiter(watch)
        assert (await anext(states)).status == serving
        first = engine_process().pid
        os.kill(first, signal.SIGKILL)

        assert (await anext(states)).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert (await anext(states)).status == serving

        watch.cancel()
        request = pb.EmbedRequest(
            model="models/hashing",
            options=pb.EmbedOptions(purpose=pb.PURPOSE_DOCUMENT),
            texts=["text"],
        )
        response = await stub.Embed(request, timeout=20)
        assert response.results[0].HasField("embedding")
        assert engine_process().pid != first
