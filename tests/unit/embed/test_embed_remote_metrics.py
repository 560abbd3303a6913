"""What remote models count: requests by how they ended, waits, and providers left alone."""

from __future__ import annotations

import pytest
from prometheus_client import REGISTRY

from services.embed.backends.remote.provider import FAILURES_TO_OPEN
from services.embed.errors import RemoteModelUnavailableError
from tests.support.embeddings_api import EmbeddingsApi, Step
from tests.unit.embed.harness import infer_one, remote_model


def _value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"lodestone_embed_remote_{name}", labels) or 0.0


def test_a_provider_that_is_left_alone_is_told_whatever_others_do(api: EmbeddingsApi) -> None:
    """Red when each provider sets the gauge for all: one that is well hides one that is dead."""
    before = _value("circuit_open")
    well = remote_model(api.url)
    dead, dead_too = (remote_model("http://127.0.0.1:1/v1") for _ in range(2))
    for model in (dead, dead_too):
        for _ in range(FAILURES_TO_OPEN):
            with pytest.raises(RemoteModelUnavailableError):
                infer_one(model)

    infer_one(well)

    assert _value("circuit_open") - before == 2
    dead.backend.close()
    assert _value("circuit_open") - before == 1
    dead_too.backend.close()
    well.backend.close()
    assert _value("circuit_open") == before


def test_a_provider_that_is_back_is_told(api: EmbeddingsApi) -> None:
    before = _value("circuit_open")
    model = remote_model(api.url, open_seconds=0.01)
    api.always = Step(status=503)
    while _value("circuit_open") == before:
        with pytest.raises(RemoteModelUnavailableError):
            infer_one(model)
    api.always = None

    while _value("circuit_open") != before:
        try:
            infer_one(model)
        except RemoteModelUnavailableError:
            continue
    model.backend.close()


def test_requests_are_counted_by_how_they_ended(api: EmbeddingsApi) -> None:
    """Red when a request that is tried again counts once, and when only good ones are timed."""
    names = ("ok", "throttled", "not_sent")
    before = {name: _value("requests_total", outcome=name) for name in names}
    timed = _value("seconds_count")
    model = remote_model(api.url)
    api.steps.append(Step(status=429, headers={"Retry-After": "0"}))

    infer_one(model)
    api.always = Step(status=429, headers={"Retry-After": "500"})
    for _ in range(2):  # the second is not even sent
        with pytest.raises(RemoteModelUnavailableError):
            infer_one(model)
    model.backend.close()

    grown = {name: _value("requests_total", outcome=name) - before[name] for name in names}
    assert grown == {"ok": 1, "throttled": 2, "not_sent": 1}
    assert _value("seconds_count") - timed == len(api.requests) == 3


def test_what_is_waited_for_a_limit_is_counted(api: EmbeddingsApi) -> None:
    """Six go at once, the seventh a second later."""
    waited = _value("wait_seconds_total")
    model = remote_model(api.url, remote_requests_per_minute=60)
    for _ in range(7):
        infer_one(model)
    model.backend.close()

    between = api.arrived_at[6] - api.arrived_at[5]
    assert 0.5 < _value("wait_seconds_total") - waited < between + 0.2
