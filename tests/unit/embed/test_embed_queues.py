"""Each model has a queue of its own, and a call's deadline is that of the wire."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import grpc
import pytest

from lodestone.embed.v1 import embed_service_pb2 as pb
from lodestone.embed.v1 import embed_service_pb2_grpc
from services.embed.app import EmbedApp
from services.embed.backends.hashing import HashingBackend, HashingEncoder
from services.embed.backends.protocol import LoadedModel
from services.embed.model import Embedding, ModelId
from services.embed.specs import specs_of
from services.runtime.channel import connect
from services.runtime.errors import OverloadedError
from services.runtime.server import ServiceRun
from tests.unit.embed.harness import DOCUMENT, GatedBackend, eventually, settings_of

MANY = [f"{number} " + "word " * 2000 for number in range(8)]


async def test_a_model_whose_queue_is_full_leaves_that_of_another_alone() -> None:
    """Red when models share a queue: whoever fills that of one has all others refuse."""
    settings = settings_of(queue_tokens=1024)
    app = EmbedApp(settings)
    busy, other = GatedBackend(), HashingBackend()
    for backend in (busy, other):  # elsewhere, so that neither waits for a turn
        backend._info = replace(backend.info, device="")
    (spec,) = specs_of(settings)
    encoder = HashingEncoder(max_text_chars=1 << 20)
    first, second = (app.serve(LoadedModel(one, encoder), spec) for one in (busy, other))
    try:
        running = asyncio.create_task(first.embed(MANY, DOCUMENT))
        await eventually(busy.entered.is_set)
        with pytest.raises(OverloadedError):
            await first.embed(["one more"], DOCUMENT)
        (outcome,) = await second.embed(["one more"], DOCUMENT)
    finally:
        busy.gate.set()
        await running
        await first.close()
        await second.close()
        await app.close()

    assert isinstance(outcome, Embedding)


async def test_the_deadline_of_a_call_on_the_wire_is_the_one_that_is_looked_at(
    address: str,
) -> None:
    """Red when the edge leaves it out: the call waits until its deadline, and is told nothing."""
    settings = settings_of(listen=address)
    app = EmbedApp(settings)
    run = ServiceRun(settings, app)
    serving = asyncio.create_task(run.serve())
    await eventually(lambda: run.serving or serving.done(), timeout_seconds=90)
    backend = GatedBackend()
    (spec,) = specs_of(settings)
    entry = app._registry.find(ModelId("hashing"))
    assert entry is not None
    assert entry.model is not None
    await entry.model.close()
    entry.model = app.serve(LoadedModel(backend, HashingEncoder(max_text_chars=1 << 20)), spec)
    options = pb.EmbedOptions(purpose=pb.PURPOSE_DOCUMENT, truncation=pb.TRUNCATION_END)
    asked = pb.EmbedRequest(model="models/hashing", texts=["late"], options=options)
    try:
        async with connect(address) as channel:
            stub = embed_service_pb2_grpc.EmbedServiceStub(channel)
            running = asyncio.create_task(entry.model.embed(MANY, DOCUMENT))
            await eventually(backend.entered.is_set)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.Embed(asked, timeout=1.0)
            backend.gate.set()
            await running
            answer = await stub.Embed(asked, timeout=10.0)
    finally:
        backend.gate.set()
        run.stop()
        await serving

    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert answer.results[0].HasField("embedding")
