"""What strangers send: bytes that are no message, and texts that nobody would write."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest

from lodestone.embed.v1 import embed_service_pb2 as pb
from lodestone.embed.v1 import embed_service_pb2_grpc, model_service_pb2
from tests.unit.embed.harness import service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.slow
_OPTIONS = pb.EmbedOptions(purpose=pb.PURPOSE_DOCUMENT, truncation=pb.TRUNCATION_END)
_EMBED = "/lodestone.embed.v1.EmbedService"
_MODEL = "/lodestone.embed.v1.ModelService"
_MUTATIONS = 400
_TOLD = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "PERMISSION_DENIED"}
"""How a call may end whose bytes are anything; UNKNOWN or INTERNAL would be a fault of ours."""

POISON = {
    "50 MB line": "x = 1; " * (50 * 2**20 // 7),
    "100,000 brackets": "[" * 100_000,
    "UTF-16 read as Latin-1": "def f(): pass".encode("utf-16").decode("latin-1"),
    "byte order mark": "\ufeffimport os",
    "NUL": "a\0b\0",
    "end of text": "<|endoftext|><|im_end|>[SEP]</s>",
    "empty": "",
}


def _request(*texts: str) -> pb.EmbedRequest:
    return pb.EmbedRequest(model="models/hashing", options=_OPTIONS, texts=texts)


def _mutated(data: bytes, chance: random.Random) -> bytes:
    """Returns the bytes with a few of them changed, left out, doubled, or the end cut off."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(changed) + 1)
        match chance.randrange(4):
            case 0:
                changed[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                del changed[at : at + chance.randint(1, 8)]
            case 2:
                changed[at:at] = changed[at : at + 8]
            case _:
                changed[at:] = b""
    return bytes(changed)


async def test_no_bytes_harm_the_service_or_a_good_client_beside_them(address: str) -> None:
    """Red without the reader of requests: six calls of seven end UNKNOWN or INTERNAL."""
    chance = random.Random(20)
    seeds = {
        f"{_EMBED}/Embed": _request("def first(): pass", "ünïcödé"),
        f"{_EMBED}/EmbedStream": pb.EmbedStreamRequest(
            id=1, model="models/hashing", options=_OPTIONS, text="def first(): pass"
        ),
        f"{_MODEL}/GetModel": model_service_pb2.GetModelRequest(name="models/hashing"),
        f"{_MODEL}/LoadModel": model_service_pb2.LoadModelRequest(
            model_id="other", source="hashing"
        ),
    }
    codes: Counter[str] = Counter()
    async with service(address) as channel:
        stub = embed_service_pb2_grpc.EmbedServiceStub(channel)
        hostile = asyncio.create_task(_send_mutations(channel, seeds, chance, codes))
        served = 0
        while not hostile.done():
            response = await stub.Embed(_request("a good text"), timeout=5)
            assert response.results[0].HasField("embedding")
            served += 1
        await hostile

    assert set(codes) <= _TOLD, codes
    assert codes["INVALID_ARGUMENT"] > _MUTATIONS / 4
    assert served > 10


async def _send_mutations(
    channel: grpc.aio.Channel, seeds: dict[str, Any], chance: random.Random, codes: Counter[str]
) -> None:
    for _ in range(_MUTATIONS):
        method, message = chance.choice(list(seeds.items()))
        data = _mutated(message.SerializeToString(), chance)

        async def requests(data: bytes = data) -> AsyncIterator[bytes]:
            yield data

        call: Any = channel.stream_stream(method)
        try:
            async for _answer in call(requests(), timeout=5):
                pass
        except grpc.aio.AioRpcError as error:
            codes[error.code().name] += 1
        else:
            codes["OK"] += 1


async def test_poison_among_texts_costs_its_neighbours_nothing(address: str) -> None:
    """The bundled model, over the wire: each text alone, then all at once among good ones."""
    good = ["def first(): pass", "class Second: ..."]
    async with service(address, model="minilm", backend="openvino") as channel:
        stub = embed_service_pb2_grpc.EmbedServiceStub(channel)

        async def embed(texts: list[str]) -> list[pb.EmbedResult]:
            request = pb.EmbedRequest(
                model="models/all-minilm-l6-v2", options=_OPTIONS, texts=texts
            )
            return list((await stub.Embed(request, timeout=60)).results)

        alone = [(await embed([text]))[0] for text in good]
        mixed = await embed([good[0], *POISON.values(), good[1]])
        request = pb.EmbedRequest(
            model="models/all-minilm-l6-v2",
            options=pb.EmbedOptions(purpose=pb.PURPOSE_DOCUMENT, truncation=pb.TRUNCATION_ERROR),
            texts=[POISON["50 MB line"], good[0]],
        )
        too_long, fits = (await stub.Embed(request, timeout=60)).results

    assert all(result.HasField("embedding") for result in mixed), mixed
    assert [mixed[0].embedding.token_count, mixed[-1].embedding.token_count] == [
        result.embedding.token_count for result in alone
    ]
    for result, before in zip((mixed[0], mixed[-1]), alone, strict=True):
        assert _cosine(result.embedding.vector, before.embedding.vector) > 0.999
    assert mixed[1].embedding.truncated
    assert too_long.HasField("error")
    assert fits.HasField("embedding")


def _cosine(left: bytes, right: bytes) -> float:
    a, b = (np.frombuffer(data, "<f4").astype(float) for data in (left, right))
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
