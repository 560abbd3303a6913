"""What the code declares is what `deploy/monitoring/telemetry.yaml` declares, both ways."""

from __future__ import annotations

import importlib
import re
from functools import cache

import pytest
from prometheus_client import REGISTRY, Histogram
from prometheus_client.metrics import MetricWrapperBase

from tests.support import log_calls, source_syntax, span_starts, telemetry_contract
from tests.support.telemetry_contract import LINE_FIELDS, Contract

SERVICES = ("io", "embed", "indexer")
_UNBOUNDED = re.compile(r"path|name|text|message|url|user|workspace|run|id")
"""Labels of such names would hold what callers choose."""


@pytest.fixture(scope="module")
def contract() -> Contract:
    return telemetry_contract.load()


@cache
def _collectors() -> dict[str, tuple[frozenset[str], MetricWrapperBase]]:
    """Every metric of the code by its exported name, with the services that have it.

    Planted once: a Counter in services/indexer/upkeep.py.
    """
    found: dict[str, tuple[frozenset[str], MetricWrapperBase]] = {}
    for module, owner in source_syntax.modules_that(_makes_metrics):
        services = frozenset(SERVICES if owner == "runtime" else {owner})
        for value in _metrics_of(importlib.import_module(module)):
            suffix = "_total" if value._type == "counter" else ""
            found[f"{value._name}{suffix}"] = services, value
    return found


def _makes_metrics(text: str) -> bool:
    return re.search(r"= (Counter|Gauge|Histogram|Summary|Info|Enum)\(", text) is not None


def _metrics_of(module: object) -> list[MetricWrapperBase]:
    """Metrics at the top of a module, and those that an object there holds."""
    values = list(vars(module).values())
    values += [held for value in values if hasattr(value, "__dict__") for held in _held(value)]
    return [value for value in values if isinstance(value, MetricWrapperBase)]


def _held(value: object) -> list[object]:
    return [] if isinstance(value, (type, MetricWrapperBase)) else list(vars(value).values())


def test_every_metric_of_the_code_is_declared_and_the_other_way_round(contract: Contract) -> None:
    """Planted once: a metric taken out of the contract, and one too many in it."""
    standard = {name for name in contract.metrics if name.startswith(("process_", "python_"))}

    assert set(_collectors()) == set(contract.metrics) - standard
    exported = {family.name for family in REGISTRY.collect()}
    assert {name.removesuffix("_total") for name in standard} <= exported


def test_labels_types_and_services_are_as_declared(contract: Contract) -> None:
    for name, (services, metric) in _collectors().items():
        declared = contract.metrics[name]
        assert metric._labelnames == tuple(declared.labels), name
        assert metric._type == declared.kind, name
        assert services == declared.services, name


def test_the_bound_of_series_follows_from_the_labels(contract: Contract) -> None:
    for name, declared in contract.metrics.items():
        buckets = 1
        metric = _collectors().get(name, (None, None))[1]
        if isinstance(metric, Histogram):
            buckets = len(metric._upper_bounds) + 2  # its sum and its count
        if "grpc_method" in declared.labels:  # kind and service follow from the method
            label_sets = declared.labels["grpc_method"].most
            label_sets *= declared.labels["grpc_code"].most if "grpc_code" in declared.labels else 1
        else:
            label_sets = declared.most_label_sets
        assert declared.max_series == buckets * label_sets, name


def test_no_label_holds_what_a_caller_chose(contract: Contract) -> None:
    for metric in contract.metrics.values():
        words = {word for label in metric.labels for word in label.split("_")}
        assert not {word for word in words if _UNBOUNDED.fullmatch(word)}, metric.name


def test_every_label_has_a_meaning_and_keeps_the_most_of_its_values(contract: Contract) -> None:
    """Red with a label of a metric that has no meaning, and with a meaning of a label of none."""
    used = {label for metric in contract.metrics.values() for label in metric.labels}
    assert used == set(contract.label_sets)
    for name, told in contract.label_sets.items():
        assert told["meaning"], name
        most = told.get("max") or len(told["values"])
        for metric in contract.metrics.values():
            assert name not in metric.labels or metric.labels[name].most <= most, metric.name


def test_units_follow_the_names(contract: Contract) -> None:
    for metric in contract.metrics.values():
        for unit in ("seconds", "bytes"):
            named = unit in metric.name.removesuffix("_total").split("_")[-1]
            assert not named or metric.unit == unit, metric.name
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert metric.meaning.endswith((".", ":")) or metric.meaning == "1", metric.name


def test_every_log_line_of_the_source_tells_what_is_declared(contract: Contract) -> None:
    """Planted once: an event renamed, a field added, a field left out, a level changed."""
    for call in log_calls.log_calls():
        declared = contract.events.get(call.event)
        assert declared is not None, f"{call.place}: {call.event} is not declared"
        assert call.level in declared["levels"], call.place
        assert call.fields == set(declared["fields"]), call.place
        services = set(SERVICES) if call.service == "runtime" else {call.service}
        assert services == set(declared["services"]), call.place


def test_every_declared_log_event_is_in_the_source(contract: Contract) -> None:
    written: dict[str, set[str]] = {}
    for call in log_calls.log_calls():
        written.setdefault(call.event, set()).add(call.level)

    assert {name: set(event["levels"]) for name, event in contract.events.items()} == written
    for event in contract.events.values():
        assert not LINE_FIELDS & set(event["fields"]), event["name"]


def test_lines_are_logged_in_no_other_way() -> None:
    """Planted once: a logger of `logging` in a service."""
    others = source_syntax.modules_that(
        lambda text: (
            re.search(r"^ *(import|from) (logging|structlog)\b", text, re.MULTILINE) is not None
        )
    )
    assert [name for name, _ in others] == ["services.runtime.library_logs", "services.runtime.log"]


def test_every_span_of_the_source_is_declared_and_the_other_way_round(contract: Contract) -> None:
    """Planted once: an attribute left out, and one more span on which a part may fail."""
    written = span_starts.written_spans()
    on_failure = {name for name, told in contract.attributes.items() if told.get("on_failure")}
    of_calls = {name: span for name, span in contract.spans.items() if name.endswith(".v1.*")}
    for name, each in of_calls.items():
        assert set(each["attributes"]) == span_starts.attributes_of_calls(), name

    assert set(written) == set(contract.spans) - set(of_calls)
    for name, span in written.items():
        declared = set(contract.spans[name]["attributes"])
        assert declared - on_failure == span.attributes, name
        assert bool(declared & on_failure) == span.may_fail_in_part, name
    attributes = {name for each in contract.spans.values() for name in each["attributes"]}
    assert attributes == set(contract.attributes)


_GROWS_WITH = frozenset({"measured", "runs", "workspaces", "models", "places"})


def test_every_attribute_and_field_has_a_meaning_a_unit_and_a_bound(contract: Contract) -> None:
    """Planted once: a field that no event has, and a bound left out."""
    used = {name for event in contract.events.values() for name in event["fields"]}
    assert used == set(contract.fields)
    declared = (contract.fields, contract.attributes, contract.resource)
    for name, told in (item for each in declared for item in each.items()):
        assert told["meaning"], name
        assert isinstance(told["unit"], str), name
        bound = told["bound"]
        assert bound in _GROWS_WITH if isinstance(bound, str) else bound > 0, name
        assert not told["unit"] or bound == "measured" or isinstance(bound, int), name
