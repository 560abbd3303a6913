"""A remote model that is stopped: whoever waits is let go, and nothing is sent any more."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from services.embed.backends.protocol import EngineDownError
from services.embed.backends.remote.abandoning import AbandonableCalls
from tests.support.embeddings_api import EmbeddingsApi, Step
from tests.unit.embed.harness import infer_one, remote_model


@pytest.mark.parametrize("waits_for", ["answer", "retry", "limit"])
def test_a_stop_lets_go_whoever_waits_and_sends_nothing_more(
    api: EmbeddingsApi, waits_for: str
) -> None:
    """Red when the wait is slept through, or ended by sending at once what the limit held back."""
    model = remote_model(api.url, remote_requests_per_minute=1 if waits_for == "limit" else 0)
    match waits_for:
        case "answer":
            api.always = Step(hang=True)
        case "retry":
            api.always = Step(status=429, headers={"Retry-After": "30"})
        case _:
            infer_one(model)  # takes all that the limit lets go at once
    with ThreadPoolExecutor(1) as thread:
        call = thread.submit(infer_one, model)
        with pytest.raises(TimeoutError):
            call.result(0.3)
        sent = len(api.requests)
        model.backend.stop()
        with pytest.raises(EngineDownError):
            call.result(5)
    with pytest.raises(EngineDownError):
        infer_one(model)
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
