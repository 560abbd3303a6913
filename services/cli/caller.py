"""The span of a command: a trace begins at who asks.

Written without OpenTelemetry's SDK, which takes longer to load than a search takes.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from services.cli.folder import DataFolder
from services.runtime.span_files import TRACES_FOLDER, SpanFiles

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

OTLP_ENDPOINT = "LODESTONE_OTLP_ENDPOINT"
_SERVICE = "lodestone-cli"
_NAME = "cli"
_FILES_BYTES = 4 << 20
_SEND_SECONDS = 0.5
"""Longest time that a command waits for a collector."""

_INTERNAL, _ERROR = 1, 2
"""Numbers of OTLP: the kind of a span that no call makes, and the status of one that failed."""


@dataclass(frozen=True, slots=True)
class Step:
    """A part of a command that is over."""

    name: str
    start_ns: int
    end_ns: int
    span_id: str = field(default_factory=lambda: os.urandom(8).hex())


@dataclass(slots=True)
class CommandSpan:
    """One command, from when it has read its arguments to its end."""

    name: str
    trace_id: str = field(default_factory=lambda: os.urandom(16).hex())
    span_id: str = field(default_factory=lambda: os.urandom(8).hex())
    start_ns: int = field(default_factory=time.time_ns)
    end_ns: int = 0
    failed: bool = True
    steps: list[Step] = field(default_factory=list)

    @property
    def traceparent(self) -> str:
        """Its place in the trace, in W3C's form."""
        return f"00-{self.trace_id}-{self.span_id}-01"


_CURRENT: ContextVar[CommandSpan | None] = ContextVar("command_span", default=None)


def trace_headers() -> list[tuple[str, str]]:
    """Returns the metadata that lets a called service continue the command's trace."""
    span = _CURRENT.get()
    return [] if span is None else [("traceparent", span.traceparent)]


@contextmanager
def command_span(name: str, root: Path) -> Iterator[CommandSpan]:
    """Makes the calls of the body one trace, and tells of the command when it has ended.

    The body says with `failed` how it ended; one that raises has failed. Nothing that goes wrong
    with telling fails the command.

    Args:
        name: the span's name.
        root: the data folder.
    """
    span = CommandSpan(name)
    token = _CURRENT.set(span)
    try:
        yield span
    finally:
        _CURRENT.reset(token)
        span.end_ns = time.time_ns()
        with suppress(OSError):
            _write(span, root)
        if endpoint := os.environ.get(OTLP_ENDPOINT):
            _send(span, endpoint)


@contextmanager
def command_step(name: str) -> Iterator[None]:
    """Tells of what the body does as a part of the command, if that has a trace."""
    start_ns = time.time_ns()
    try:
        yield
    finally:
        if span := _CURRENT.get():
            span.steps.append(Step(name, start_ns, time.time_ns()))


def traces_folder(root: Path) -> Path | None:
    """Returns where the services of a data folder write their spans; None when they write none."""
    given = os.environ.get(TRACES_FOLDER)
    if given is None:
        return DataFolder(root).traces
    return type(root)(given) if given else None


def _write(span: CommandSpan, root: Path) -> None:
    folder = traces_folder(root)
    if folder is None or not DataFolder(root).marker.exists():
        return  # nothing is written into a folder that is not ours
    files = SpanFiles(folder, _NAME, _FILES_BYTES)
    try:
        files.append(_line(span))
    finally:
        files.close()


def _line(span: CommandSpan) -> bytes:
    """Returns the span and its steps as OTLP/JSON."""
    status = {"status": {"code": _ERROR}} if span.failed else {}
    told = [
        *(_told(span, each, {"parentSpanId": span.span_id}) for each in span.steps),
        _told(span, span, status),
    ]
    service = {"key": "service.name", "value": {"stringValue": _SERVICE}}
    scope = {"scope": {"name": "lodestone"}, "spans": told}
    resource = {"resource": {"attributes": [service]}, "scopeSpans": [scope]}
    return json.dumps({"resourceSpans": [resource]}, separators=(",", ":")).encode()


def _told(
    span: CommandSpan, each: CommandSpan | Step, more: Mapping[str, object]
) -> dict[str, object]:
    return {
        "traceId": span.trace_id,
        "spanId": each.span_id,
        "name": each.name,
        "kind": _INTERNAL,
        "startTimeUnixNano": str(each.start_ns),
        "endTimeUnixNano": str(each.end_ns),
        **more,
    }


def _send(span: CommandSpan, endpoint: str) -> None:
    """Sends the spans to a collector; one that does not answer is told of by the services."""
    import logging

    from opentelemetry.context import Context
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.id_generator import IdGenerator
    from opentelemetry.trace import StatusCode, set_span_in_context

    class Given(IdGenerator):
        span_id = span.span_id

        def generate_trace_id(self) -> int:
            return int(span.trace_id, 16)

        def generate_span_id(self) -> int:
            return int(self.span_id, 16)

    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    ids = Given()
    resource = Resource.create({"service.name": _SERVICE})
    provider = TracerProvider(resource=resource, id_generator=ids, shutdown_on_exit=False)
    insecure = not endpoint.startswith("https://")
    exporter = OTLPSpanExporter(endpoint=endpoint, insecure=insecure, timeout=_SEND_SECONDS)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracer = provider.get_tracer("lodestone")
    told = tracer.start_span(span.name, Context(), start_time=span.start_ns)
    for step in span.steps:
        ids.span_id = step.span_id
        part = tracer.start_span(
            step.name, set_span_in_context(told, Context()), start_time=step.start_ns
        )
        part.end(step.end_ns)
    if span.failed:
        told.set_status(StatusCode.ERROR)
    told.end(span.end_ns)
    provider.shutdown()
