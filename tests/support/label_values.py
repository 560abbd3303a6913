"""Holds every test's metrics to the label values that are declared."""

from __future__ import annotations

import sys
from functools import cache
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.support.telemetry_contract import Metric

_told: set[tuple[str, str, str]] = set()
"""What an earlier module was told of."""


@pytest.fixture(scope="module", autouse=True)
def labels_have_declared_values() -> Iterator[None]:
    """Fails after a module in whose process a metric got a label's value that is not declared.

    A full run of the product shows few of them: most values tell of failures. Planted once: an
    outcome spelt otherwise.
    """
    yield
    if any(f"services.{name}.metrics" in sys.modules for name in ("io", "embed", "indexer")):
        found = _undeclared() - _told
        _told.update(found)
        assert not found, "metrics have label values that telemetry.yaml does not list"


def _undeclared() -> set[tuple[str, str, str]]:
    from prometheus_client import REGISTRY

    declared = _by_series()
    return {
        (sample.name, label, value)
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.name in declared
        for label, value in sample.labels.items()
        if label != "le" and value not in (declared[sample.name].labels[label].values or (value,))
    }


@cache
def _by_series() -> Mapping[str, Metric]:
    from tests.support import telemetry_contract

    return telemetry_contract.load().by_series()
