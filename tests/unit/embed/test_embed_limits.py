"""What a caller may send: counts, bytes, huge and odd texts, over the wire as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import pytest

from lodestone.embed.v1 import embed_service_pb2 as pb
from lodestone.embed.v1 import embed_service_pb2_grpc as embed_grpc
from services.runtime.status import read_rpc_error, read_status
from tests.unit.embed.harness import service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MODEL = "models/hashing"
METHOD = "/lodestone.embed.v1.EmbedService/Embed"
MESSAGE_BYTES = 2 << 20


@pytest.fixture
async def channel(address: str) -> AsyncIterator[grpc.aio.Channel]:
    async with service(address, max_message_bytes=MESSAGE_BYTES, max_text_chars=10_000) as opened:
        yield opened


def _request(texts: list[str], **fields: object) -> pb.EmbedRequest:
    options = pb.EmbedOptions(**{"purpose": pb.PURPOSE_DOCUMENT, **fields})  # type: ignore[arg-type]
    return pb.EmbedRequest(model=MODEL, options=options, texts=texts)


async def test_the_most_texts_of_a_request_are_answered_and_one_more_refused(
    channel: grpc.aio.Channel,
) -> None:
    stub = embed_grpc.EmbedServiceStub(channel)

    answer = await stub.Embed(_request([f"text {n}" for n in range(256)]))
    with pytest.raises(grpc.aio.AioRpcError) as more:
        await stub.Embed(_request(["x"] * 257))
    with pytest.raises(grpc.aio.AioRpcError) as none:
        await stub.Embed(_request([]))

    assert len(answer.results) == 256
    for failure in (more, none):
        error = read_rpc_error(failure.value)
        assert (error.code, error.reason) == ("INVALID_ARGUMENT", "ERROR_REASON_INVALID_REQUEST")
        assert "texts" in error.message


async def test_empty_texts_have_vectors(channel: grpc.aio.Channel) -> None:
    answer = await embed_grpc.EmbedServiceStub(channel).Embed(_request(["", " ", "\n"]))

    assert {result.WhichOneof("outcome") for result in answer.results} == {"embedding"}
    assert all(result.embedding.token_count for result in answer.results)


async def test_a_huge_text_fails_or_is_cut_as_asked_and_its_neighbour_is_embedded(
    channel: grpc.aio.Channel,
) -> None:
    huge = "value = compute(value) + 1; " * 50_000
    stub = embed_grpc.EmbedServiceStub(channel)

    strict = await stub.Embed(_request([huge, "small"]))
    cut = await stub.Embed(_request([huge, "small"], truncation=pb.TRUNCATION_END))
    start = await stub.Embed(_request([huge + "END"], truncation=pb.TRUNCATION_START))

    error = read_status(strict.results[0].error)
    assert error.reason == "ERROR_REASON_TEXT_TOO_LONG"
    assert int(error.metadata["tokens"]) > int(error.metadata["limit"]) == 2048
    assert [result.embedding.truncated for result in cut.results] == [True, False]
    assert [result.embedding.token_count for result in cut.results] == [2048, 2]
    assert start.results[0].embedding.vector != cut.results[0].embedding.vector
    assert strict.results[1] == cut.results[1]


async def test_a_request_of_too_many_bytes_is_refused_and_the_next_one_served(
    address: str, channel: grpc.aio.Channel
) -> None:
    """The bound is the server's: the caller here would send anything."""
    options = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(address, options=options) as reckless:
        stub = embed_grpc.EmbedServiceStub(reckless)
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await stub.Embed(_request(["x" * (MESSAGE_BYTES + 1)]))
        answer = await stub.Embed(_request(["after"]))

    assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert answer.results[0].HasField("embedding")


@pytest.mark.parametrize(
    "text",
    [b"\xed\xa0\x80", b"\xed\xb0\x80 low", b"\xff\xfe", b"\xc0\xaf", b"cut \xf0\x9f\x8e"],
    ids=["high-surrogate", "low-surrogate", "utf-16-mark", "overlong", "cut-character"],
)
async def test_bytes_that_are_no_text_are_refused_and_do_no_harm(
    channel: grpc.aio.Channel, text: bytes
) -> None:
    """Refused as the message is read, as any other wrong request.

    Python's client cannot write these; others can.
    """
    raw: Any = channel.unary_unary(METHOD)
    request = _request(["MARK"]).SerializeToString()
    spoiled = request.replace(b"\x04MARK", bytes([len(text)]) + text)
    assert spoiled != request

    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await raw(spoiled)
    answer = await embed_grpc.EmbedServiceStub(channel).Embed(_request(["after"]))

    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "low" not in (failure.value.details() or "")
    assert answer.results[0].HasField("embedding")


def test_a_lone_surrogate_does_not_get_into_a_request() -> None:
    with pytest.raises((UnicodeEncodeError, ValueError)):
        _request(["\ud800"])


async def test_calls_beyond_the_queue_are_told_when_to_come_back(address: str) -> None:
    async with service(address, queue_tokens=1024) as channel:
        stub = embed_grpc.EmbedServiceStub(channel)
        calls = [stub.Embed(_request([f"word{n} " * 900]), timeout=30) for n in range(20)]
        outcomes: list[str | None] = []
        for call in calls:
            try:
                outcomes.append((await call).results[0].WhichOneof("outcome"))
            except grpc.aio.AioRpcError as failure:
                error = read_rpc_error(failure)
                assert (error.retry_after_seconds or 0) > 0
                outcomes.append(error.reason)

    assert set(outcomes) == {"embedding", "ERROR_REASON_OVERLOADED"}
