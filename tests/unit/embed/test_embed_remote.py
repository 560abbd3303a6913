"""A remote model over real HTTP on loopback: what a provider may do, and what callers see of it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from services.embed.app import EmbedApp
from services.embed.backends.remote.endpoint import EndpointError, checked_url
from services.embed.backends.remote.provider import TextsAtFaultError
from services.embed.errors import BadVectorError, RemoteModelUnavailableError
from services.embed.model import Purpose
from services.embed.sources import resolve_source
from services.embed.specs import specs_of
from services.runtime.exits import ExitCode, StartError
from tests.support.embeddings_api import EmbeddingsApi, Step
from tests.unit.embed.harness import DOCUMENT, settings_of
from tests.unit.embed.remote_calls import CLOSED_PORT_URL, expected, infer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from services.embed.backends.protocol import LoadedModel


@pytest.mark.parametrize("takes_base64", [True, False])
def test_rows_are_the_providers_in_the_order_of_the_texts(
    api: EmbeddingsApi, load: Callable[..., LoadedModel], *, takes_base64: bool
) -> None:
    """The server answers the last text first. Red when `index` is not looked at."""
    api.takes_base64 = takes_base64
    model = load()

    first, second = infer(model), infer(model)

    assert np.allclose(first, expected(), atol=1e-6)
    assert np.array_equal(first, second)
    formats = [request["encoding_format"] for request in api.requests]
    assert formats == (["base64"] * 2 if takes_base64 else ["base64", "float", "float"])


def test_a_server_that_gives_numbers_when_asked_for_base64_is_understood(
    api: EmbeddingsApi, load: Callable[..., LoadedModel]
) -> None:
    api.always = Step(
        change=lambda _: {
            "data": [{"embedding": row.tolist(), "index": at} for at, row in enumerate(expected())]
        }
    )

    assert np.allclose(infer(load()), expected(), atol=1e-6)


def test_the_request_has_the_agreed_form(
    api: EmbeddingsApi, load: Callable[..., LoadedModel], tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.touch(0o600)
    key.write_text("sk-canary\n")

    infer(load(remote_key_file=key), ["a", "b"])
    key.write_text("sk-rotated-canary\n")
    infer(load(remote_key_file=key), ["a"])

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
    rows = infer(load(remote_max_batch_texts=2))

    assert np.allclose(rows, expected(), atol=1e-6)
    assert [len(request["input"]) for request in api.requests] == [2, 2, 1]


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
            infer(model, ["text-canary"])
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

    assert np.allclose(infer(load()), expected(), atol=1e-6)


@pytest.mark.usefixtures("short_waits")
def test_a_proxy_that_is_set_is_used(load: Callable[..., LoadedModel], api: EmbeddingsApi) -> None:
    """The provider plays the proxy: it sees the whole URL, which it does not serve."""
    model = load(remote_url="http://localhost:1/v1", remote_proxy=api.url.removesuffix("/v1"))

    with pytest.raises((RemoteModelUnavailableError, BadVectorError, TextsAtFaultError)):
        infer(model)

    assert api.headers[0]["Host"] == "localhost:1"
