"""`deploy/monitoring/telemetry.yaml` as plain data: what a process may tell."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Mapping

MONITORING = Path(__file__).parent.parent.parent / "deploy" / "monitoring"
LINE_FIELDS = frozenset({"event", "level", "timestamp", "service", "trace_id", "span_id"})
"""Fields that every log line may have."""

_SUFFIXES = {
    "counter": ("",),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
}


@dataclass(frozen=True, slots=True)
class Label:
    """A label: its values when they are listed, else None, and the most that it may have."""

    values: frozenset[str] | None
    most: int


@dataclass(frozen=True, slots=True)
class Metric:
    """A declared metric."""

    name: str
    kind: str
    services: frozenset[str]
    max_series: int
    labels: Mapping[str, Label]
    unit: str
    meaning: str

    @property
    def series(self) -> tuple[str, ...]:
        """Names of its series."""
        return tuple(f"{self.name}{suffix}" for suffix in _SUFFIXES[self.kind])

    @property
    def most_label_sets(self) -> int:
        """Product of the values of its labels."""
        return math.prod(label.most for label in self.labels.values())


@dataclass(frozen=True, slots=True)
class Contract:
    """All that is declared."""

    label_sets: Mapping[str, Mapping[str, Any]]
    """What each label means."""
    metrics: Mapping[str, Metric]
    resource: Mapping[str, Mapping[str, Any]]
    """Attributes of every span of a process."""
    spans: Mapping[str, Mapping[str, Any]]
    attributes: Mapping[str, Mapping[str, Any]]
    events: Mapping[str, Mapping[str, Any]]
    fields: Mapping[str, Mapping[str, Any]]
    """Fields of log lines, beside those of every line."""

    def by_series(self) -> dict[str, Metric]:
        """Returns each series' metric."""
        return {series: each for each in self.metrics.values() for series in each.series}

    def span_of(self, name: str) -> Mapping[str, Any] | None:
        """Returns the declaration that a span's name falls under."""
        if name in self.spans:
            return self.spans[name]
        return next(
            (
                span
                for declared, span in self.spans.items()
                if declared.endswith("*") and name.startswith(declared[:-1])
            ),
            None,
        )


def load() -> Contract:
    """Reads the contract; a name that stands there twice is an error."""
    text = yaml.safe_load((MONITORING / "telemetry.yaml").read_text("utf-8"))
    sets = {name: _label(each) for name, each in text["label_sets"].items()}
    return Contract(
        label_sets=text["label_sets"],
        resource=text["resource_attributes"],
        metrics=_by_name(_metric(each, sets) for each in text["metrics"]),
        spans=_by_name_of(text["spans"]),
        attributes=text["span_attributes"],
        events=_by_name_of(text["events"]),
        fields=text["event_fields"],
    )


def _label(declared: Mapping[str, Any]) -> Label:
    values = declared.get("values")
    return Label(frozenset(values) if values else None, declared.get("max") or len(values or ()))


def _metric(declared: Mapping[str, Any], sets: Mapping[str, Label]) -> Metric:
    labels = {
        name: Label(frozenset(values), len(values)) if values else sets[name]
        for name, values in declared["labels"].items()
    }
    return Metric(
        name=declared["name"],
        kind=declared["type"],
        services=frozenset(declared["services"]),
        max_series=declared["max_series"],
        labels=labels,
        unit=declared["unit"],
        meaning=declared["meaning"],
    )


def _by_name(metrics: Any) -> dict[str, Metric]:
    found: dict[str, Metric] = {}
    for metric in metrics:
        assert metric.name not in found, f"{metric.name} is declared twice"
        found[metric.name] = metric
    return found


def _by_name_of(declared: list[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    names = [each["name"] for each in declared]
    assert len(names) == len(set(names)), "a name is declared twice"
    return dict(zip(names, declared, strict=True))
