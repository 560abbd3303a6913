"""A remote model over real HTTP on loopback: what a provider may do, and what callers see of it."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from services.embed.app import EmbedApp
from services.embed.backends.hashing import HashingBackend
from services.embed.backends.remote import retrying
from services.embed.backends.remote.endpoint import EndpointError, checked_url
from services.embed.backends.remote.provider import FAILURES_TO_OPEN, TextsAtFaultError
from services.embed.errors import BadVectorError, RemoteModelUnavailableError
from services.embed.model import Embedding, EncodedText, Purpose, Truncation
from services.embed.sources import resolve_source
from services.embed.specs import specs_of
from services.runtime.exits import ExitCode, StartError
from tests.support.embeddings_api import POISON, EmbeddingsApi, Step
from tests.unit.embed.harness import (
    DOCUMENT,
    eventually,
    ids_of,
    remote_model,
    served,
    settings_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from services.embed.backends.protocol import LoadedModel
    from services.embed.model import TokenIds, Vectors

TEXTS = ["", "return None", "def add(a, b):\n    return a + b", "удалить", "x" * 500]
CLOSED_PORT_URL = "http://127.0.0.1:1/v1"


@pytest.fixture
def opened() -> Iterator[list[LoadedModel]]:
    """Models that are closed at the end."""
    models: list[LoadedModel] = []
    yield models
    for model in models:
        model.backend.close()


@pytest.fixture
def load(api: EmbeddingsApi, opened: list[LoadedModel]) -> Callable[..., LoadedModel]:
    """Loads a remote model with settings of the test's choice."""

    def load_with(**fields: Any) -> LoadedModel:
        model = remote_model(api.url, **fields)
        opened.append(model)
        return model

    return load_with


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of whether something is sent again, not of how long that waits."""
    monkeypatch.setattr(retrying, "_FIRST_WAIT_SECONDS", 0.01)


def _ids(model: LoadedModel, texts: Sequence[str]) -> list[TokenIds]:
    encoded = model.encoder.encode(texts, Truncation.END)
    return [item.ids for item in encoded if isinstance(item, EncodedText)]


def _infer(model: LoadedModel, texts: Sequence[str] = TEXTS) -> Vectors:
    return model.backend.infer(_ids(model, texts))


def _expected(texts: Sequence[str] = TEXTS) -> Vectors:
    return HashingBackend(384).infer([ids_of(text or " ") for text in texts])


def _change_rows(change: Callable[[list[Any]], Any]) -> Step:
    return Step(change=lambda message: {**message, "data": change(message["data"])})


def _with_first(embedding: Any) -> Step:
    """Replaces the embedding of the first text, which is sent last."""
    return _change_rows(lambda data: [*data[:-1], {**data[-1], "embedding": embedding}])


@pytest.mark.parametrize("takes_base64", [True, False])
def test_rows_are_the_providers_in_the_order_of_the_texts(
    api: EmbeddingsApi, load: Callable[..., LoadedModel], *, takes_base64: bool
) -> None:
    """The server answers the last text first. Red when `index` is not looked at."""
    api.takes_base64 = takes_base64
    model = load()

    first, second = _infer(model), _infer(model)

    assert np.allclose(first, _expected(), atol=1e-6)
    assert np.array_equal(first, second)
    formats = [request["encoding_format"] for request in api.requests]
    assert formats == (["base64"] * 2 if takes_base64 else ["base64", "float", "float"])


def test_a_server_that_gives_numbers_when_asked_for_base64_is_understood(
    api: EmbeddingsApi, load: Callable[..., LoadedModel]
) -> None:
    api.always = Step(
        change=lambda _: {
            "data": [{"embedding": row.tolist(), "index": at} for at, row in enumerate(_expected())]
        }
    )

    assert np.allclose(_infer(load()), _expected(), atol=1e-6)


def test_the_request_has_the_agreed_form(
    api: EmbeddingsApi, load: Callable[..., LoadedModel], tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.touch(0o600)
    key.write_text("sk-canary\n")

    _infer(load(remote_key_file=key), ["a", "b"])
    key.write_text("sk-rotated-canary\n")
    _infer(load(remote_key_file=key), ["a"])

    assert api.requests[0] == {
        "model": "code-1",
        "input": ["a", "b"],
        "encoding_format": "base64",
        "dimensions": 384,
    }
    assert api.headers[0]["Authorization"] == "Bearer sk-canary"
    assert api.headers[-1]["Authorization"] == "Bearer sk-rotated-canary"


def test_without_a_size_the_first_call_finds_it(
    api: EmbeddingsApi, load: Callable[..., LoadedModel]
) -> None:
    api.dimensions = 96
    model = load(remote_dimensions=0)

    assert model.backend.info.dimensions == 96
    assert "dimensions" not in api.requests[0]


def test_the_fingerprint_tells_provider_model_and_size_apart(
    load: Callable[..., LoadedModel], api: EmbeddingsApi
) -> None:
    identities = [
        load().backend.info.identity,
        load(remote_dimensions=128).backend.info.identity,
        load(remote_url=api.url.replace("127.0.0.1", "localhost")).backend.info.identity,
        load(remote_query_prompt="query: ").backend.info.identity,
    ]

    assert len({str(identity) for identity in identities}) == 4
    assert load().backend.info.identity == identities[0]


def test_large_batches_go_in_parts(api: EmbeddingsApi, load: Callable[..., LoadedModel]) -> None:
    rows = _infer(load(remote_max_batch_texts=2))

    assert np.allclose(rows, _expected(), atol=1e-6)
    assert [len(request["input"]) for request in api.requests] == [2, 2, 1]


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
    _infer(model)
    api.steps.append(fault)

    assert np.allclose(_infer(model), _expected(), atol=1e-6)
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

    rows = _infer(load())

    assert np.isnan(rows[0]).all()
    assert np.allclose(rows[1:], _expected()[1:], atol=1e-6)


def test_retry_after_holds_every_request_back(
    api: EmbeddingsApi, load: Callable[..., LoadedModel]
) -> None:
    """Red when only the refused request waits: the other one is sent at once."""
    model = load()
    api.steps.append(Step(status=429, headers={"Retry-After": "1"}))
    first = threading.Thread(target=_infer, args=(model,))
    first.start()
    deadline = time.monotonic() + 10
    while not model.backend._provider._limit.held_seconds:  # type: ignore[attr-defined]
        assert time.monotonic() < deadline

    _infer(model, ["another"])
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
            _infer(model)
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
            _infer(model)
    sent = len(api.requests)

    started = time.monotonic()
    refused = 0
    while time.monotonic() < started + 0.1:
        with pytest.raises(RemoteModelUnavailableError) as error:
            _infer(model)
        refused += 1

    assert refused > 20
    assert len(api.requests) == sent
    assert error.value.retry_after_seconds is not None
    api.always = None
    deadline = time.monotonic() + 10
    while True:
        try:
            rows = _infer(model)
            break
        except RemoteModelUnavailableError:
            assert time.monotonic() < deadline
    assert np.allclose(rows, _expected(), atol=1e-6)


@pytest.mark.parametrize("status", [401, 403, 404, 301, 418])
def test_what_only_settings_can_mend_is_not_retried(
    api: EmbeddingsApi, load: Callable[..., LoadedModel], status: int
) -> None:
    """A redirect counts: key and texts go nowhere that the settings do not name."""
    api.always = Step(status=status, headers={"Location": f"{api.url}/elsewhere"})

    with pytest.raises(RemoteModelUnavailableError):
        _infer(load())

    assert len(api.requests) == 1


@pytest.mark.usefixtures("short_waits")
def test_a_provider_that_cannot_be_reached_is_no_fault_of_the_texts(
    load: Callable[..., LoadedModel],
) -> None:
    with pytest.raises(RemoteModelUnavailableError, match="unreachable"):
        _infer(load(remote_url=CLOSED_PORT_URL))


@pytest.mark.parametrize("step", [Step(hang=True), Step(dribble=True)])
def test_a_silent_and_a_slow_provider_cost_the_timeout(
    api: EmbeddingsApi, load: Callable[..., LoadedModel], step: Step
) -> None:
    """Red without the deadline over all parts: a byte now and then keeps a thread for ever."""
    api.always = step
    model = load(remote_timeout_seconds=0.2, remote_deadline_seconds=0.5)
    started = time.monotonic()

    with pytest.raises(RemoteModelUnavailableError, match="timed_out"):
        _infer(model)

    assert time.monotonic() - started < 3


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


async def test_prompts_are_put_before_texts(
    api: EmbeddingsApi, load: Callable[..., LoadedModel]
) -> None:
    settings = settings_of()
    app = EmbedApp(settings)
    (spec,) = specs_of(settings)
    loaded = load(remote_document_prompt="passage: ", remote_query_prompt="query: ")
    model = app.serve(loaded, spec)

    await model.embed(["a"], DOCUMENT)
    await model.embed(["a"], replace(DOCUMENT, purpose=Purpose.QUERY))
    await model.close()
    await app.close()

    assert [request["input"] for request in api.requests] == [["passage: a"], ["query: a"]]


@pytest.mark.usefixtures("short_waits")
def test_neither_key_nor_text_is_logged_or_told(
    api: EmbeddingsApi,
    load: Callable[..., LoadedModel],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    key = tmp_path / "key-canary"
    key.touch(0o600)
    key.write_text("sk-canary")
    model = load(remote_key_file=key)
    told = []
    for step in (Step(status=401), Step(status=400), Step(change=lambda _: b"no"), None):
        api.always = step
        if step is None:
            key.chmod(0o644)
        with pytest.raises((RemoteModelUnavailableError, BadVectorError, TextsAtFaultError)) as e:
            _infer(model, ["text-canary"])
        told.append(str(e.value))

    captured = capsys.readouterr()
    assert "remote_key_refused" in captured.err
    assert "canary" not in captured.err + captured.out + json.dumps(told)


@pytest.mark.parametrize(
    "url",
    [
        "api.openai.com/v1",
        "ftp://api.openai.com",
        "http://api.openai.com/v1",
        "http://10.0.0.1/v1",
        "https://user:secret@api.openai.com/v1",
        "https://api.openai.com/v1?key=secret",
        "https:///v1",
    ],
)
def test_a_url_that_is_unsafe_is_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(EndpointError) as error:
        checked_url(url)
    assert "secret" not in str(error.value)

    with pytest.raises(StartError) as failure:
        resolve_source(settings_of(model="openai:m", remote_url=url))
    assert failure.value.code is ExitCode.USAGE
    assert "LODESTONE_EMBED_REMOTE_URL" in failure.value.message


@pytest.mark.parametrize(
    "url", ["https://api.openai.com/v1/", "http://127.0.0.1:80", "http://[::1]"]
)
def test_a_url_that_is_safe_is_taken(url: str) -> None:
    assert checked_url(url) == url.rstrip("/")


@pytest.mark.usefixtures("short_waits")
def test_a_start_that_cannot_ask_for_the_size_says_what_to_set(
    load: Callable[..., LoadedModel], tmp_path: Path
) -> None:
    with pytest.raises(StartError, match="REMOTE_DIMENSIONS") as failure:
        load(remote_url=CLOSED_PORT_URL, remote_dimensions=0)
    assert failure.value.code is ExitCode.MODEL
    with pytest.raises(StartError, match="REMOTE_KEY_FILE"):
        load(remote_key_file=tmp_path / "missing")


def test_proxies_of_the_environment_are_not_used(
    load: Callable[..., LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red with `trust_env`: the request goes to a port where nobody listens."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)

    assert np.allclose(_infer(load()), _expected(), atol=1e-6)


@pytest.mark.usefixtures("short_waits")
def test_a_proxy_that_is_set_is_used(load: Callable[..., LoadedModel], api: EmbeddingsApi) -> None:
    """The provider plays the proxy: it sees the whole URL, which it does not serve."""
    model = load(remote_url="http://localhost:1/v1", remote_proxy=api.url.removesuffix("/v1"))

    with pytest.raises((RemoteModelUnavailableError, BadVectorError, TextsAtFaultError)):
        _infer(model)

    assert api.headers[0]["Host"] == "localhost:1"
