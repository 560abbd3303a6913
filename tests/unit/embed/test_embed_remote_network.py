"""How long a connection to a provider waits: never beyond the deadline of its request."""

from __future__ import annotations

import time

import httpcore2
import pytest

from services.embed.backends.remote.network import DeadlineNetwork


@pytest.mark.parametrize(
    ("timeout", "most"), [(None, 30.0), (60.0, 30.0), (0.5, 0.5)], ids=["none", "longer", "shorter"]
)
def test_no_wait_is_longer_than_what_is_left(timeout: float | None, most: float) -> None:
    """Red when a timeout counts alone: a wait that begins late would last as long again."""
    network = DeadlineNetwork()
    with network.until(time.monotonic() + 30):
        left = network.seconds_left(timeout, httpcore2.ReadTimeout)

    assert most - 5 < left <= most


def test_a_wait_that_begins_too_late_is_none() -> None:
    network = DeadlineNetwork()
    with network.until(time.monotonic() - 1), pytest.raises(httpcore2.WriteTimeout):
        network.seconds_left(60.0, httpcore2.WriteTimeout)
