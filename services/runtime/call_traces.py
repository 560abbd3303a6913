"""Spans of gRPC calls, and the headers that join them across processes."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import grpc
from opentelemetry import propagate, trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from services.runtime.telemetry import tracer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from opentelemetry.context import Context
    from opentelemetry.trace import Span
    from opentelemetry.util.types import AttributeValue

_SERVER_FAULTS = frozenset(
    ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
)
"""Codes that OpenTelemetry's conventions count as errors of a server; others are its callers'."""


@contextmanager
def server_span(
    full_method: str, metadata: Iterable[tuple[str, str | bytes]] | None
) -> Iterator[Span]:
    """Makes a span current that continues the caller's trace.

    Exceptions are not recorded: their text may hold paths or content, and spans leave the machine.
    """
    carrier = {key: value for key, value in metadata or () if isinstance(value, str)}
    with tracer().start_as_current_span(
        full_method.strip("/"),
        context=propagate.extract(carrier),
        kind=SpanKind.SERVER,
        attributes=_attributes(full_method),
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        yield span


def end_server_span(span: Span, code: str) -> None:
    """Tells how the call ended; the span itself ends with its `with` block."""
    _set_code(span, code, failed=code in _SERVER_FAULTS)


def client_span(full_method: str) -> Span:
    """Starts the span of an outgoing call, under the current one."""
    return tracer().start_span(
        full_method.strip("/"), kind=SpanKind.CLIENT, attributes=_attributes(full_method)
    )


def headers_of(span: Span) -> list[tuple[str, str]]:
    """Returns the metadata that lets the called service continue the span's trace."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier, context=trace.set_span_in_context(span))
    return list(carrier.items())


def current_traceparent() -> str:
    """Returns the place in its trace of what is done now, in W3C's form; empty outside of one."""
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def continued(traceparent: str) -> Context:
    """Returns the context in which a span continues a trace; its own one for an empty string."""
    return propagate.extract({"traceparent": traceparent} if traceparent else {})


def end_client_span(span: Span, code: str) -> None:
    """Ends the span of an outgoing call."""
    _set_code(span, code, failed=code != "OK")
    span.end()


def _attributes(full_method: str) -> dict[str, AttributeValue]:
    service, _, method = full_method.strip("/").rpartition("/")
    return {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}


def _set_code(span: Span, code: str, *, failed: bool) -> None:
    number: int = grpc.StatusCode[code].value[0]
    span.set_attribute("rpc.grpc.status_code", number)
    if failed:
        span.set_status(Status(StatusCode.ERROR, code))
