"""Spans as the files of a machine hold them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from services.runtime.span_files import span_files

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

RUN_ATTRIBUTE = "lodestone.run"
CLIENT = 3
"""OTLP's number of the kind of a span that a call makes at its caller."""

_ERROR = 2
_SERVICE_PREFIX = "lodestone-"


@dataclass(frozen=True, slots=True)
class Span:
    """One finished span; times in nanoseconds since 1970."""

    trace_id: str
    span_id: str
    parent_id: str
    """Empty for the root of a trace."""
    service: str
    """Without `lodestone-`."""
    name: str
    start_ns: int
    end_ns: int
    is_client: bool = False
    failed: bool = False
    error: str = ""
    """Why it failed: a reason, a gRPC code or a type of error; empty where nobody said."""
    attributes: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    links: tuple[str, ...] = ()
    """Ids of the spans that it served."""
    linked_traces: frozenset[str] = frozenset()

    @property
    def run_id(self) -> str:
        """The run that it is the work of an owner on; empty for all others."""
        return str(self.attributes.get(RUN_ATTRIBUTE, ""))


@dataclass(frozen=True, slots=True)
class Found:
    """The spans of some traces, and forwards of others that served them."""

    spans: Sequence[Span]
    forwards: Sequence[Span]


def find_spans(folder: Path, trace_id: str, run_id: str = "") -> Found:
    """Returns the spans of a trace, and of every trace in which somebody worked on a run.

    A run that nobody's call asked for has a trace for each of its owners. Raises OSError.
    """
    marks = {mark for mark in (trace_id, run_id) if mark}
    known = {trace_id} if trace_id else set()
    spans = list(_read(folder, marks))
    traces = known | {span.trace_id for span in spans if run_id and span.run_id == run_id}
    if traces - known:
        spans = list(_read(folder, traces))
    return Found(
        [span for span in spans if span.trace_id in traces],
        [span for span in spans if span.trace_id not in traces and span.linked_traces & traces],
    )


def _read(folder: Path, marks: set[str]) -> Iterator[Span]:
    """Yields the spans of lines that hold one of the marks; what is no such line is passed over."""
    wanted = [mark.encode() for mark in marks]
    for path in span_files(folder):
        try:
            with path.open("rb") as file:
                for line in file:
                    if any(mark in line for mark in wanted):
                        yield from _spans_of(line)
        except FileNotFoundError:
            continue  # the oldest are removed at any time


def _spans_of(line: bytes) -> list[Span]:
    try:
        return [
            _span(told, _text(resource["resource"]["attributes"], "service.name"))
            for resource in json.loads(line)["resourceSpans"]
            for scope in resource["scopeSpans"]
            for told in scope["spans"]
        ]
    except (ValueError, KeyError, TypeError):
        return []  # cut off by a full disk or a kill


def _span(told: Mapping[str, Any], service: str) -> Span:
    links, status = told.get("links", ()), told.get("status", {})
    return Span(
        trace_id=told["traceId"],
        span_id=told["spanId"],
        parent_id=told.get("parentSpanId", ""),
        service=service.removeprefix(_SERVICE_PREFIX),
        name=told["name"],
        start_ns=int(told["startTimeUnixNano"]),
        end_ns=int(told["endTimeUnixNano"]),
        is_client=told.get("kind") == CLIENT,
        failed=status.get("code") == _ERROR,
        error=status.get("message", ""),
        attributes={item["key"]: _value(item["value"]) for item in told.get("attributes", ())},
        links=tuple(link["spanId"] for link in links),
        linked_traces=frozenset(link["traceId"] for link in links),
    )


def _value(told: Mapping[str, Any]) -> str | int | float | bool:
    if "intValue" in told:
        return int(told["intValue"])
    for name in ("stringValue", "doubleValue", "boolValue"):
        if name in told:
            value: str | float | bool = told[name]
            return value
    return ""


def _text(attributes: Sequence[Mapping[str, Any]], key: str) -> str:
    return next(
        (str(item["value"]["stringValue"]) for item in attributes if item["key"] == key), ""
    )
