"""Settings of live mode: a wrong one is named with what is wrong about it."""

from __future__ import annotations

import pytest

from services.indexer.settings import IndexerSettings
from services.runtime.exits import StartError
from services.runtime.settings import load_settings

_PREFIX = "LODESTONE_INDEXER_LIVE_"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DEBOUNCE_SECONDS", "-1"),
        ("MAX_WAIT_SECONDS", "0"),
        ("MAX_PATHS", "0"),
        ("MAX_PATHS", "10001"),
        ("RECONCILE_SECONDS", "0.5"),
        ("LEASE_SECONDS", "0"),
        ("MAX_WORKSPACES", "-1"),
    ],
)
def test_a_value_out_of_bounds_is_named(name: str, value: str) -> None:
    with pytest.raises(StartError) as caught:
        load_settings(
            IndexerSettings,
            {"LODESTONE_DATABASE_URL": "postgresql:///x", f"{_PREFIX}{name}": value},
        )

    assert f"{_PREFIX}{name}" in caught.value.message


def test_a_longest_wait_below_the_quiet_time_is_refused_by_both_names() -> None:
    with pytest.raises(StartError) as caught:
        load_settings(
            IndexerSettings,
            {
                "LODESTONE_DATABASE_URL": "postgresql:///x",
                f"{_PREFIX}DEBOUNCE_SECONDS": "5",
                f"{_PREFIX}MAX_WAIT_SECONDS": "1",
            },
        )

    assert f"{_PREFIX}DEBOUNCE_SECONDS" in caught.value.message
    assert f"{_PREFIX}MAX_WAIT_SECONDS" in caught.value.message
