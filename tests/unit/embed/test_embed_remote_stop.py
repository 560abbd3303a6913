"""A remote model that is stopped: whoever waits is let go, and nothing is sent any more."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from services.embed.backends.protocol import EngineDownError
from services.embed.backends.remote.abandoning import AbandonableCalls
from services.embed.backends.remote.backend import load_remote
from services.embed.model import EncodedText, Truncation
from services.embed.sources import RemoteSource, resolve_source
from tests.support.embeddings_api import EmbeddingsApi, Step, serving_embeddings
from tests.unit.embed.harness import settings_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services.embed.backends.protocol import LoadedModel


@pytest.fixture
def api() -> Iterator[EmbeddingsApi]:
    with serving_embeddings() as running:
        yield running


def _load(api: EmbeddingsApi, **fields: int) -> LoadedModel:
    settings = settings_of(
        model="openai:code-1", remote_url=api.url, remote_dimensions=384, **fields
    )
    source = resolve_source(settings)
    assert isinstance(source, RemoteSource)
    return load_remote(source.endpoint, token_budget=0, max_text_chars=1 << 20)


def _infer(model: LoadedModel) -> object:
    (encoded,) = model.encoder.encode(["def first(): pass"], Truncation.END)
    assert isinstance(encoded, EncodedText)
    return model.backend.infer([encoded.ids])


@pytest.mark.parametrize("waits_for", ["answer", "retry", "limit"])
def test_a_stop_lets_go_whoever_waits_and_sends_nothing_more(
    api: EmbeddingsApi, waits_for: str
) -> None:
    """Red when the wait is slept through, or ended by sending at once what the limit held back."""
    model = _load(api, remote_requests_per_minute=1 if waits_for == "limit" else 0)
    match waits_for:
        case "answer":
            api.always = Step(hang=True)
        case "retry":
            api.always = Step(status=429, headers={"Retry-After": "30"})
        case _:
            _infer(model)  # takes all that the limit lets go at once
    with ThreadPoolExecutor(1) as thread:
        call = thread.submit(_infer, model)
        with pytest.raises(TimeoutError):
            call.result(0.3)
        sent = len(api.requests)
        model.backend.stop()
        with pytest.raises(EngineDownError):
            call.result(5)
    with pytest.raises(EngineDownError):
        _infer(model)
    model.backend.close()

    assert len(api.requests) == sent == 1


def test_calls_that_are_not_left_end_as_their_work_does() -> None:
    calls = AbandonableCalls()

    assert calls.run(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        calls.run(lambda: 1 // 0)


def test_work_that_was_left_ends_without_anybody() -> None:
    calls = AbandonableCalls()
    begun, may_end, ended = (threading.Event() for _ in range(3))

    def work() -> None:
        begun.set()
        may_end.wait(10)
        ended.set()

    with ThreadPoolExecutor(1) as thread:
        call = thread.submit(calls.run, work)
        assert begun.wait(10)
        calls.stop()
        with pytest.raises(EngineDownError):
            call.result(5)
    may_end.set()
    assert ended.wait(10)
