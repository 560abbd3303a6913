"""Traces join across services, and tell how calls ended."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.trace import SpanKind, StatusCode

from services.runtime.channel import connect
from services.runtime.errors import NotFoundError
from services.runtime.telemetry import start_as_current_span, tell_failed, tracer
from tests.unit.runtime.running import eventually, running
from tests.unit.runtime.sample_calls import embed, failure_of, scan
from tests.unit.runtime.sample_service import SampleApp

if TYPE_CHECKING:
    from pathlib import Path

    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from tests.unit.runtime.running import Running


async def test_one_trace_spans_a_caller_and_two_services(
    tmp_path: Path, spans: InMemorySpanExporter
) -> None:
    first_app = SampleApp()
    async with (
        running(f"unix:{tmp_path}/second"),
        running(f"unix:{tmp_path}/first", first_app) as first,
        connect(f"unix:{tmp_path}/second") as onward,
    ):
        first_app.onward = onward

        with tracer().start_as_current_span("caller"):
            await embed(first.channel, "onward")

        await eventually(lambda: len(spans.get_finished_spans()) == 5)
    by_id = {span.context.span_id: span for span in spans.get_finished_spans() if span.context}
    innermost = next(span for span in by_id.values() if _depth(span, by_id) == 4)
    chain = []
    span: ReadableSpan | None = innermost
    while span is not None:
        chain.append((span.name.rpartition("/")[2], span.kind))
        span = by_id[span.parent.span_id] if span.parent else None
    assert chain == [
        ("Embed", SpanKind.SERVER),
        ("Embed", SpanKind.CLIENT),
        ("Embed", SpanKind.SERVER),
        ("Embed", SpanKind.CLIENT),
        ("caller", SpanKind.INTERNAL),
    ]
    assert len({span.context.trace_id for span in by_id.values() if span.context}) == 1


async def test_health_calls_leave_no_span(service: Running, spans: InMemorySpanExporter) -> None:
    stub = health_pb2_grpc.HealthStub(service.channel)

    await stub.Check(health_pb2.HealthCheckRequest())

    assert spans.get_finished_spans() == ()


async def test_a_servers_fault_is_an_error_on_both_spans(
    service: Running, spans: InMemorySpanExporter
) -> None:
    await failure_of(embed(service.channel, "crash"))

    # The caller has its answer a little before the server's span ends.
    await eventually(lambda: len(spans.get_finished_spans()) == 2)
    assert _ends(spans) == {
        SpanKind.CLIENT: (13, StatusCode.ERROR),
        SpanKind.SERVER: (13, StatusCode.ERROR),
    }


async def test_a_callers_fault_is_an_error_on_its_own_span_alone(
    service: Running, spans: InMemorySpanExporter
) -> None:
    await failure_of(embed(service.channel, "missing"))

    # The caller has its answer a little before the server's span ends.
    await eventually(lambda: len(spans.get_finished_spans()) == 2)
    assert _ends(spans) == {
        SpanKind.CLIENT: (5, StatusCode.ERROR),
        SpanKind.SERVER: (5, StatusCode.UNSET),
    }


async def test_the_spans_of_a_cancelled_call_end(
    service: Running, spans: InMemorySpanExporter
) -> None:
    call = asyncio.ensure_future(embed(service.channel, "wait"))
    await eventually(lambda: "inside" in service.app.events)

    call.cancel()

    await eventually(lambda: len(spans.get_finished_spans()) == 2)
    assert _ends(spans) == {
        SpanKind.CLIENT: (1, StatusCode.ERROR),
        SpanKind.SERVER: (1, StatusCode.UNSET),
    }


async def test_the_spans_of_an_abandoned_stream_end(
    service: Running, spans: InMemorySpanExporter
) -> None:
    call = scan(service.channel, "quiet")
    await call.read()

    call.cancel()

    await eventually(lambda: len(spans.get_finished_spans()) == 2)
    assert {code for code, _ in _ends(spans).values()} == {1}


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (NotFoundError("There is no /home/okapi."), "ERROR_REASON_NOT_FOUND"),
        (ValueError("/home/okapi"), "ValueError"),
        (
            ExceptionGroup("of tasks", [ExceptionGroup("", [NotFoundError("/home/okapi")])]),
            "ERROR_REASON_NOT_FOUND",
        ),
    ],
)
def test_a_span_tells_the_reason_of_what_its_body_raised_and_no_text(
    raised: Exception, told: str, spans: InMemorySpanExporter
) -> None:
    """Red with exceptions recorded, as OpenTelemetry does unless it is told otherwise."""
    with pytest.raises(type(raised)), start_as_current_span("work"):
        raise raised

    (span,) = spans.get_finished_spans()
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, told)
    assert "okapi" not in span.to_json()
    assert not span.events


async def test_who_is_cancelled_has_not_failed(spans: InMemorySpanExporter) -> None:
    """Red with an error for whatever a body raises."""

    async def wait() -> None:
        with start_as_current_span("work"):
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])

    (span,) = spans.get_finished_spans()
    assert span.status.status_code is StatusCode.UNSET


def test_a_span_tells_how_many_of_its_items_failed_and_the_commonest_reason(
    spans: InMemorySpanExporter,
) -> None:
    """Red with the reason of the first."""
    with start_as_current_span("some") as span:
        tell_failed(span, ["RARE", "COMMON", "COMMON"])
    with start_as_current_span("none") as span:
        tell_failed(span, [])

    some, none = spans.get_finished_spans()
    assert (some.status.status_code, some.status.description) == (StatusCode.ERROR, "COMMON")
    assert dict(some.attributes or {}) == {"lodestone.failed": 3}
    assert (none.status.status_code, dict(none.attributes or {})) == (StatusCode.UNSET, {})


def _depth(span: ReadableSpan, by_id: dict[int, ReadableSpan]) -> int:
    return 0 if span.parent is None else 1 + _depth(by_id[span.parent.span_id], by_id)


def _ends(spans: InMemorySpanExporter) -> dict[SpanKind, tuple[object, StatusCode]]:
    return {
        span.kind: ((span.attributes or {})["rpc.grpc.status_code"], span.status.status_code)
        for span in spans.get_finished_spans()
    }
