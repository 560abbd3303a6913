"""A provider that says when to come back: all heed it, and nobody waits for longer than set."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from services.embed.errors import RemoteModelUnavailableError
from tests.support.embeddings_api import EmbeddingsApi, Step
from tests.unit.embed.harness import infer_one, remote_model


def test_who_waits_for_the_limit_as_the_provider_holds_all_is_told_in_time(
    api: EmbeddingsApi,
) -> None:
    """Red when the hold is waited out whatever it is: the call ends after an hour."""
    model = remote_model(api.url, remote_requests_per_minute=60, remote_deadline_seconds=8.0)
    limit = model.backend._provider._limit  # type: ignore[attr-defined]
    for _ in range(6):  # all that the limit lets go at once
        infer_one(model)
    with ThreadPoolExecutor(1) as thread:
        call = thread.submit(infer_one, model)  # a second and more for its place
        while limit._requests._level >= -0.5:
            time.sleep(0.001)
        limit.hold(3600.0)
        try:
            with pytest.raises(RemoteModelUnavailableError) as error:
                call.result(7)
        finally:
            model.backend.close()

    assert error.value.retry_after_seconds == pytest.approx(3600, abs=10)
    assert len(api.requests) == 6


@pytest.mark.parametrize("status", [429, 503])
def test_a_time_to_come_back_is_heeded_by_all_whatever_the_status(
    api: EmbeddingsApi, status: int
) -> None:
    """Red when only 429 counts: RFC 9110 has 503 say it too, and the next call is sent at once."""
    model = remote_model(api.url)
    api.always = Step(status=status, headers={"Retry-After": "500"})

    for _ in range(2):  # the second is not even sent
        with pytest.raises(RemoteModelUnavailableError) as error:
            infer_one(model)
        assert error.value.retry_after_seconds == pytest.approx(500, abs=5)
    model.backend.close()

    assert len(api.requests) == 1
