"""A provider that fails, is slow or dead, over real HTTP on loopback: what callers see of it."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from lodestone.embed.v1 import embed_service_pb2 as pb
from lodestone.embed.v1 import embed_service_pb2_grpc
from services.embed.app import EmbedApp
from services.embed.backends.hashing import HashingBackend
from services.embed.backends.remote.provider import FAILURES_TO_OPEN
from services.embed.backends.remote.retrying import MOST_TRIES
from services.embed.errors import BadVectorError, RemoteModelUnavailableError
from services.embed.model import Embedding
from services.embed.specs import specs_of
from tests.support.embeddings_api import POISON, EmbeddingsApi, Step
from tests.unit.embed.harness import DOCUMENT, eventually, served, service, settings_of
from tests.unit.embed.remote_calls import CLOSED_PORT_URL, TEXTS, expected, infer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from services.embed.backends.protocol import LoadedModel


def _change_rows(change: Callable[[list[Any]], Any]) -> Step:
    return Step(change=lambda message: {**message, "data": change(message["data"])})


def _with_first(embedding: Any) -> Step:
    """Replaces the embedding of the first text, which is sent last."""
    return _change_rows(lambda data: [*data[:-1], {**data[-1], "embedding": embedding}])


@pytest.mark.usefixtures("short_waits")
@pytest.mark.parametrize(
    "fault",
    [
        Step(status=500),
        Step(status=503),
        Step(status=429, headers={"Retry-After": "0"}),
        Step(cut_off=True),
        Step(change=lambda _: b"<html>"),
        Step(change=lambda _: b"[" * 5000),
        Step(change=lambda _: b'{"data": ' + b"9" * 5000 + b"}"),
        Step(change=lambda _: b" " * (64 << 20)),
        Step(headers={"Content-Encoding": "gzip"}),
        _change_rows(lambda data: data[1:]),
        _change_rows(lambda data: [*data, data[0]]),
        _change_rows(lambda data: [{**row, "index": 0} for row in data]),
        _change_rows(lambda data: [{**row, "index": True} for row in data]),
        _change_rows(lambda data: [{**row, "embedding": row["embedding"][:-8]} for row in data]),
        _change_rows(lambda data: [{**row, "embedding": [[1.0]]} for row in data]),
        _change_rows(lambda _: None),
        _with_first("!not base64!"),
    ],
)
def test_a_fault_that_passes_is_not_seen(
    api: EmbeddingsApi, load: Callable[..., LoadedModel], fault: Step
) -> None:
    """One bad answer, then good ones."""
    model = load()
    infer(model)
    api.steps.append(fault)

    assert np.allclose(infer(model), expected(), atol=1e-6)
    assert len(api.requests) == 3


@pytest.mark.parametrize(
    "embedding",
    [
        [float("nan")] * 384,
        [float("inf")] + [0.0] * 383,
        [0.0] * 384,
        [1.0] * 383,
        [],
    ],
)
def test_a_row_that_is_no_vector_is_told_as_nan_and_harms_no_other(
    api: EmbeddingsApi, load: Callable[..., LoadedModel], embedding: list[float]
) -> None:
    """Red when rows are not checked: a NaN among the numbers reaches the index."""
    api.always = _with_first(embedding)

    rows = infer(load())

    assert np.isnan(rows[0]).all()
    assert np.allclose(rows[1:], expected()[1:], atol=1e-6)


def test_retry_after_holds_every_request_back(
    api: EmbeddingsApi, load: Callable[..., LoadedModel]
) -> None:
    """Red when only the refused request waits: the other one is sent at once."""
    model = load()
    api.steps.append(Step(status=429, headers={"Retry-After": "1"}))
    first = threading.Thread(target=infer, args=(model,))
    first.start()
    deadline = time.monotonic() + 10
    while not model.backend._provider._limit.held_seconds:  # type: ignore[attr-defined]
        assert time.monotonic() < deadline

    infer(model, ["another"])
    first.join(10)

    assert len(api.requests) == 3
    assert min(api.arrived_at[1:]) - api.arrived_at[0] >= 0.95


def test_a_retry_after_beyond_the_deadline_is_passed_on(
    api: EmbeddingsApi, load: Callable[..., LoadedModel]
) -> None:
    api.always = Step(status=429, headers={"Retry-After": "500"})
    model = load()

    for _ in range(2):  # the second is not even sent
        with pytest.raises(RemoteModelUnavailableError) as error:
            infer(model)
        assert error.value.retry_after_seconds == pytest.approx(500, abs=2)
    assert len(api.requests) == 1


def test_a_dead_provider_is_left_alone_and_tried_again(
    api: EmbeddingsApi, load: Callable[..., LoadedModel]
) -> None:
    """Red without the circuit: every call takes its retries, and the provider gets them all."""
    model = load(open_seconds=0.2)
    api.always = Step(status=503)
    while len(api.requests) < FAILURES_TO_OPEN:
        with pytest.raises(RemoteModelUnavailableError):
            infer(model)
    sent = len(api.requests)

    started = time.monotonic()
    refused = 0
    while time.monotonic() < started + 0.1:
        with pytest.raises(RemoteModelUnavailableError) as error:
            infer(model)
        refused += 1

    assert refused > 20
    assert len(api.requests) == sent
    assert error.value.retry_after_seconds is not None
    api.always = None
    deadline = time.monotonic() + 10
    while True:
        try:
            rows = infer(model)
            break
        except RemoteModelUnavailableError:
            assert time.monotonic() < deadline
    assert np.allclose(rows, expected(), atol=1e-6)


@pytest.mark.parametrize("status", [401, 403, 404, 301, 418])
def test_what_only_settings_can_mend_is_not_retried(
    api: EmbeddingsApi, load: Callable[..., LoadedModel], status: int
) -> None:
    """A redirect counts: key and texts go nowhere that the settings do not name."""
    api.always = Step(status=status, headers={"Location": f"{api.url}/elsewhere"})

    with pytest.raises(RemoteModelUnavailableError):
        infer(load())

    assert len(api.requests) == 1


@pytest.mark.usefixtures("short_waits")
def test_a_provider_that_cannot_be_reached_is_no_fault_of_the_texts(
    load: Callable[..., LoadedModel],
) -> None:
    with pytest.raises(RemoteModelUnavailableError, match="unreachable"):
        infer(load(remote_url=CLOSED_PORT_URL))


_OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "step",
    [
        Step(hang=True),
        Step(dribble=(_OK + b"Content-Length: 999999\r\n\r\n", b" ")),
        Step(dribble=(_OK + b"X-Slow: ", b"a")),
        Step(dribble=(_OK + b"Transfer-Encoding: chunked\r\n\r\n5;", b"a")),
        Step(dribble=(b"", b"HTTP/1.1 100 Continue\r\n\r\n")),
    ],
    ids=["silent", "body", "head", "chunk", "promise"],
)
def test_a_silent_and_a_slow_provider_cost_the_timeout(
    api: EmbeddingsApi, load: Callable[..., LoadedModel], step: Step
) -> None:
    """Red without the deadline over all parts: a byte now and then keeps a thread for ever."""
    api.always = step
    model = load(remote_timeout_seconds=0.2, remote_deadline_seconds=0.5)

    with ThreadPoolExecutor(1) as thread:
        try:
            failure = thread.submit(infer, model).exception(timeout=3)
        finally:
            model.backend.stop()

    assert isinstance(failure, RemoteModelUnavailableError)
    assert "timed_out" in str(failure)


async def _served(load: Callable[..., LoadedModel], texts: Sequence[str]) -> list[Any]:
    settings = settings_of(model="openai:code-1", remote_url=CLOSED_PORT_URL)
    app = EmbedApp(settings)
    (spec,) = specs_of(settings)
    model = app.serve(load(), spec)
    try:
        return await model.embed(texts, DOCUMENT)
    finally:
        await model.close()
        await app.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "poison",
    [Step(status=400), Step(status=413), Step(status=500), Step(change=lambda _: b"no")],
)
async def test_a_text_that_the_provider_fails_on_fails_alone(
    api: EmbeddingsApi, load: Callable[..., LoadedModel], poison: Step
) -> None:
    """Red when 500 always means a dead provider: the neighbours are not embedded."""
    api.for_poison = poison

    outcomes = await _served(load, ["a", f"x {POISON}", "b", "c"])

    kinds = [type(outcome) for outcome in outcomes]
    assert kinds == [Embedding, BadVectorError, Embedding, Embedding]


@pytest.mark.slow
@pytest.mark.parametrize("step", [Step(status=500), Step(status=503), Step(cut_off=True)])
async def test_a_dead_provider_fails_the_call_and_blames_no_text(
    api: EmbeddingsApi, load: Callable[..., LoadedModel], step: Step
) -> None:
    """Red when the engine halves the batch: 64 texts cost 127 calls and end as bad vectors."""
    api.always = step

    with pytest.raises(RemoteModelUnavailableError) as error:
        await _served(load, [f"text {n}" for n in range(64)])

    assert error.value.retry_after_seconds is not None
    assert len(api.requests) <= 4 * 4


@pytest.mark.slow
async def test_a_provider_is_told_from_its_texts_whatever_runs_in_a_process_of_its_own(
    api: EmbeddingsApi, address: str
) -> None:
    """Red when a remote model runs there: a moment's outage ends a text as one at fault."""
    given = {"model": "openai:code-1", "remote_url": api.url, "remote_dimensions": 384}
    async with service(address, isolation="process", **given) as channel:
        api.steps.extend([Step(status=503)] * MOST_TRIES)
        request = pb.EmbedRequest(
            model="models/code-1",
            options=pb.EmbedOptions(purpose=pb.PURPOSE_DOCUMENT),
            texts=["def first(): pass"],
        )

        stub = embed_service_pb2_grpc.EmbedServiceStub(channel)
        response = await stub.Embed(request, timeout=30)  # the channel tries again

    assert response.results[0].HasField("embedding")


@pytest.mark.slow
async def test_a_dead_remote_model_stalls_no_other(
    api: EmbeddingsApi, load: Callable[..., LoadedModel]
) -> None:
    api.always = Step(hang=True)
    settings = settings_of()
    app = EmbedApp(settings)
    (spec,) = specs_of(settings)
    dead = app.serve(load(remote_timeout_seconds=1, remote_deadline_seconds=2), spec)
    async with asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(_ends(dead.embed([f"{n}"], DOCUMENT))) for n in range(20)]
        await eventually(lambda: api.requests)
        async with served(HashingBackend()) as well:
            outcomes = await well.embed(TEXTS, DOCUMENT)
        assert not any(task.done() for task in waiting)
    await dead.close()
    await app.close()

    assert all(isinstance(outcome, Embedding) for outcome in outcomes)
    assert {task.result() for task in waiting} == {"RemoteModelUnavailableError"}


async def _ends(call: Any) -> str:
    try:
        await call
    except Exception as error:  # noqa: BLE001 - how it ended is the result
        return type(error).__name__
    return "ok"
