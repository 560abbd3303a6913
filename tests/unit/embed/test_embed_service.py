"""The service over gRPC: batches, streams, models, errors."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest

from lodestone.embed.v1 import embed_service_pb2 as pb
from lodestone.embed.v1 import embed_service_pb2_grpc as embed_grpc
from lodestone.embed.v1 import model_service_pb2 as model_pb
from lodestone.embed.v1 import model_service_pb2_grpc as model_grpc
from lodestone.embed.v1 import rerank_service_pb2 as rerank_pb
from lodestone.embed.v1 import rerank_service_pb2_grpc as rerank_grpc
from services.runtime.status import read_rpc_error, read_status
from tests.unit.embed.harness import service
from tests.unit.runtime.running import Counters, samples

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HASHING = "models/hashing"
LONG = "word " * 5000


def _options(**fields: object) -> pb.EmbedOptions:
    return pb.EmbedOptions(**{"purpose": pb.PURPOSE_DOCUMENT, **fields})  # type: ignore[arg-type]


def _request(texts: list[str], **fields: object) -> pb.EmbedRequest:
    return pb.EmbedRequest(model=HASHING, options=_options(**fields), texts=texts)


@pytest.fixture
async def channel(address: str) -> AsyncIterator[grpc.aio.Channel]:
    async with service(address) as opened:
        yield opened


async def test_a_batch_answers_each_text_in_order_with_its_own_outcome(
    channel: grpc.aio.Channel,
) -> None:
    answer = await embed_grpc.EmbedServiceStub(channel).Embed(
        _request(["def a(): pass", LONG, "", "\0", "🎉" * 50, "def a(): pass"])
    )

    kinds = [result.WhichOneof("outcome") for result in answer.results]
    assert kinds == ["embedding", "error", *["embedding"] * 4]
    error = read_status(answer.results[1].error)
    assert error.reason == "ERROR_REASON_TEXT_TOO_LONG"
    assert error.metadata["limit"] == "2048"
    vectors = [np.frombuffer(result.embedding.vector, "<f4") for result in answer.results]
    assert all(len(vector) == 384 for at, vector in enumerate(vectors) if at != 1)
    assert np.array_equal(vectors[0], vectors[5])
    assert len(answer.model_fingerprint) == 32


async def test_a_cut_text_says_so(channel: grpc.aio.Channel) -> None:
    answer = await embed_grpc.EmbedServiceStub(channel).Embed(
        _request(["short", LONG], truncation=pb.TRUNCATION_END)
    )

    assert [result.embedding.truncated for result in answer.results] == [False, True]
    assert answer.results[1].embedding.token_count == 2048


@pytest.mark.parametrize(
    ("fields", "code", "reason"),
    [
        ({"model": "models/other"}, "NOT_FOUND", "MODEL_NOT_LOADED"),
        ({"model": "other"}, "INVALID_ARGUMENT", "INVALID_REQUEST"),
        ({"texts": []}, "INVALID_ARGUMENT", "INVALID_REQUEST"),
        ({"texts": ["x"] * 257}, "INVALID_ARGUMENT", "INVALID_REQUEST"),
        ({"options": pb.EmbedOptions()}, "INVALID_ARGUMENT", "INVALID_REQUEST"),
        ({"options": _options(dimensions=64)}, "INVALID_ARGUMENT", "INVALID_REQUEST"),
        (
            {"options": _options(expect_fingerprint="x")},
            "FAILED_PRECONDITION",
            "FINGERPRINT_MISMATCH",
        ),
    ],
)
async def test_a_wrong_request_is_refused_with_its_reason(
    channel: grpc.aio.Channel, fields: dict[str, object], code: str, reason: str
) -> None:
    request = pb.EmbedRequest(
        **{"model": HASHING, "options": _options(), "texts": ["x"], **fields}  # type: ignore[arg-type]
    )

    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await embed_grpc.EmbedServiceStub(channel).Embed(request)

    error = read_rpc_error(failure.value)
    assert (error.code, error.reason) == (code, f"ERROR_REASON_{reason}")


def _stream_requests(texts: list[str], **fields: object) -> list[pb.EmbedStreamRequest]:
    return [
        pb.EmbedStreamRequest(id=at, model=HASHING, options=_options(**fields), text=text)
        for at, text in enumerate(texts)
    ]


async def test_a_stream_answers_every_text_once_with_the_vectors_of_a_batch(
    channel: grpc.aio.Channel,
) -> None:
    stub = embed_grpc.EmbedServiceStub(channel)
    texts = [f"def function_{n}(): return {n}" for n in range(1000)]

    answers = {
        answer.id: answer.result.embedding.vector
        async for answer in stub.EmbedStream(iter(_stream_requests(texts)))
    }
    batch = await stub.Embed(_request(texts[:256]))

    assert sorted(answers) == list(range(1000))
    assert [answers[at] for at in range(256)] == [
        result.embedding.vector for result in batch.results
    ]


async def test_a_bad_text_answers_with_its_error_and_the_stream_goes_on(
    channel: grpc.aio.Channel,
) -> None:
    requests = _stream_requests(["one", LONG, "three"])
    requests += [
        pb.EmbedStreamRequest(id=3, model="models/other", options=_options(), text="four"),
        pb.EmbedStreamRequest(
            id=4, model=HASHING, options=_options(vector_type=pb.VECTOR_TYPE_INT8), text="five"
        ),
    ]

    answers = {
        answer.id: answer.result
        async for answer in embed_grpc.EmbedServiceStub(channel).EmbedStream(iter(requests))
    }

    assert len(answers) == 5
    assert read_status(answers[1].error).reason == "ERROR_REASON_TEXT_TOO_LONG"
    assert read_status(answers[3].error).reason == "ERROR_REASON_MODEL_NOT_LOADED"
    assert len(answers[2].embedding.vector) == 4 * 384
    assert len(answers[4].embedding.vector) == 384


async def test_a_stream_answers_while_the_caller_still_writes(channel: grpc.aio.Channel) -> None:
    """A caller may wait for each answer before it sends the next text."""
    call = embed_grpc.EmbedServiceStub(channel).EmbedStream()

    for at, request in enumerate(_stream_requests(["one", "two", "three"])):
        await call.write(request)
        answer = await asyncio.wait_for(call.read(), 10)
        assert isinstance(answer, pb.EmbedStreamResponse)
        assert answer.id == at
    await call.done_writing()

    assert await call.read() is grpc.aio.EOF


async def test_a_stream_whose_answers_nobody_takes_is_read_no_further(
    address: str,
) -> None:
    """Red where a group gives its slot back before its answers are taken: all texts are embedded.

    What the transport takes beside what the session holds is a window of 64 KiB each way.
    """
    counted = Counters(samples())
    texts = [f"x = {number}" + " + 1" * 400 for number in range(5000)]
    fixed_window = [("grpc.http2.bdp_probe", 0)]
    async with (
        service(address),
        grpc.aio.insecure_channel(address, options=fixed_window) as channel,
    ):
        call = embed_grpc.EmbedServiceStub(channel).EmbedStream(iter(_stream_requests(texts)))
        await call.initial_metadata()
        before = -1.0
        while before < (now := counted.grown("lodestone_embed_texts_total")):
            before = now
            await asyncio.sleep(0.5)

        assert 0 < before < 2000
        assert len([answer async for answer in call]) == len(texts)


async def test_a_caller_who_goes_while_it_is_answered_is_no_failure_of_the_server(
    address: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Red where a write that finds nobody ends the call INTERNAL, which alerts count."""
    texts = [f"x = {number}" + " + 1" * 400 for number in range(2000)]
    for _ in range(3):
        async with service(address):
            channel = grpc.aio.insecure_channel(address, options=[("grpc.http2.bdp_probe", 0)])
            call = embed_grpc.EmbedServiceStub(channel).EmbedStream(iter(_stream_requests(texts)))
            await call.initial_metadata()
            await asyncio.sleep(0.7)  # the server waits in a write, for a window that is full
            await channel.close()
        del call

    assert "call_failed" not in capfd.readouterr().err


async def test_an_empty_stream_ends(channel: grpc.aio.Channel) -> None:
    call = embed_grpc.EmbedServiceStub(channel).EmbedStream(iter(()))

    assert [answer async for answer in call] == []


async def test_a_wrong_message_ends_the_stream_with_its_reason(channel: grpc.aio.Channel) -> None:
    requests = [*_stream_requests(["one"]), pb.EmbedStreamRequest(id=1, model="nonsense")]

    with pytest.raises(grpc.aio.AioRpcError) as failure:
        async for _ in embed_grpc.EmbedServiceStub(channel).EmbedStream(iter(requests)):
            pass

    assert read_rpc_error(failure.value).reason == "ERROR_REASON_INVALID_REQUEST"


async def test_an_open_stream_ends_unavailable_when_the_server_drains(address: str) -> None:
    """Red without stopping the sessions: the stream holds the server for its whole grace."""
    loop = asyncio.get_running_loop()
    async with service(address, drain_seconds=30) as channel:
        call = embed_grpc.EmbedServiceStub(channel).EmbedStream()
        await call.write(_stream_requests(["one"])[0])
        answer = await call.read()
        assert isinstance(answer, pb.EmbedStreamResponse)
        started = loop.time()

    assert await call.code() is grpc.StatusCode.UNAVAILABLE
    assert loop.time() - started < 5


async def test_models_are_listed_and_got(channel: grpc.aio.Channel) -> None:
    stub = model_grpc.ModelServiceStub(channel)

    listed = await stub.ListModels(model_pb.ListModelsRequest())
    got = await stub.GetModel(model_pb.GetModelRequest(name=HASHING))

    assert [model.name for model in listed.models] == [HASHING]
    assert not listed.next_page_token
    assert got.model == listed.models[0]
    assert got.model.state == model_pb.Model.STATE_READY
    assert (got.model.dimensions, got.model.max_tokens, got.model.max_batch_size) == (
        384,
        2048,
        256,
    )
    assert (got.model.backend, got.model.precision) == ("hashing", "float32")


async def test_an_unknown_model_and_a_foreign_page_token_are_refused(
    channel: grpc.aio.Channel,
) -> None:
    stub = model_grpc.ModelServiceStub(channel)

    with pytest.raises(grpc.aio.AioRpcError) as unknown:
        await stub.GetModel(model_pb.GetModelRequest(name="models/other"))
    with pytest.raises(grpc.aio.AioRpcError) as foreign:
        await stub.ListModels(model_pb.ListModelsRequest(page_token="models/x"))

    assert read_rpc_error(unknown.value).reason == "ERROR_REASON_MODEL_NOT_LOADED"
    assert read_rpc_error(foreign.value).reason == "ERROR_REASON_PAGE_TOKEN_MISMATCH"


async def test_without_a_reranker_the_answer_says_so(channel: grpc.aio.Channel) -> None:
    stub = rerank_grpc.RerankServiceStub(channel)
    with pytest.raises(grpc.aio.AioRpcError) as off:
        await stub.Rerank(rerank_pb.RerankRequest(query="q", texts=["t"]))
    with pytest.raises(grpc.aio.AioRpcError) as other:
        await stub.Rerank(rerank_pb.RerankRequest(model=HASHING, query="q", texts=["t"]))

    error = read_rpc_error(off.value)
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", "ERROR_REASON_STATE_CONFLICT")
    assert "LODESTONE_EMBED_RERANKER" in error.message
    assert read_rpc_error(other.value).reason == "ERROR_REASON_INVALID_REQUEST"


@pytest.mark.parametrize(
    "fields", [{"query": ""}, {"query": "x" * 8193}, {"texts": []}, {"texts": ["x"] * 257}]
)
async def test_a_wrong_request_to_rerank_is_refused(
    channel: grpc.aio.Channel, fields: dict[str, object]
) -> None:
    request = rerank_pb.RerankRequest(**{"query": "q", "texts": ["t"], **fields})  # type: ignore[arg-type]

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await rerank_grpc.RerankServiceStub(channel).Rerank(request)

    assert read_rpc_error(refused.value).reason == "ERROR_REASON_INVALID_REQUEST"


async def test_a_cancelled_call_leaves_nothing_behind(channel: grpc.aio.Channel) -> None:
    stub = embed_grpc.EmbedServiceStub(channel)
    texts = [f"text number {n} " * 100 for n in range(256)]

    calls = [stub.Embed(_request(texts)) for _ in range(5)]
    await asyncio.sleep(0)
    for call in calls:
        call.cancel()
    answer = await stub.Embed(_request(["after"]), timeout=10)

    assert answer.results[0].HasField("embedding")
