"""Traces of a process."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Status, StatusCode

from services.runtime.errors import LodestoneError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from opentelemetry.context import Context
    from opentelemetry.trace import Link, Span
    from opentelemetry.util.types import AttributeValue

    from services.runtime.span_files import SpanFiles

_EXPORT_SECONDS = 1.5
"""Longest time of sending one batch of spans: a dead collector must not hold up a stop."""

FILE_SECONDS = 0.5
"""Longest time that a finished span stays out of the files, while they can be written."""

_FILE_QUEUE_SPANS = 8192
_FAILED = "lodestone.failed"


def configure_traces(
    service: str, otlp_endpoint: str, files: SpanFiles | None
) -> Callable[[], None]:
    """Sets up tracing for the process; spans go to an endpoint and into files that are given.

    Returns a function that sends what is left and stops.
    """
    provider = TracerProvider(resource=Resource.create({"service.name": f"lodestone-{service}"}))
    if otlp_endpoint:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (  # noqa: PLC0415 - slow to import, seldom needed
            OTLPSpanExporter,
        )

        insecure = not otlp_endpoint.startswith("https://")
        exporter = OTLPSpanExporter(
            endpoint=otlp_endpoint, insecure=insecure, timeout=_EXPORT_SECONDS
        )
        provider.add_span_processor(BatchSpanProcessor(exporter))
    if files is not None:
        from services.runtime.span_exporter import FileSpanExporter  # noqa: PLC0415 - as above

        provider.add_span_processor(
            BatchSpanProcessor(
                FileSpanExporter(files),
                max_queue_size=_FILE_QUEUE_SPANS,
                schedule_delay_millis=FILE_SECONDS * 1000,
            )
        )
    trace.set_tracer_provider(provider)
    return provider.shutdown


def tracer() -> trace.Tracer:
    """Returns the tracer of this process."""
    return trace.get_tracer("lodestone")


@contextmanager
def start_as_current_span(
    name: str,
    *,
    context: Context | None = None,
    links: Sequence[Link] | None = None,
    attributes: Mapping[str, AttributeValue] | None = None,
) -> Iterator[Span]:
    """Makes a span current; one whose body raises has an error with the reason alone.

    The text of an exception and where it was raised may hold paths or content, and spans leave the
    machine. Who is cancelled has not failed.
    """
    with tracer().start_as_current_span(
        name,
        context=context,
        links=links,
        attributes=attributes,
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield span
        except Exception as error:
            span.set_status(Status(StatusCode.ERROR, _reason_of(error)))
            raise


def tell_failed(span: Span, reasons: Collection[str]) -> None:
    """Tells on a span why some of what it was for failed, while the rest was done.

    Args:
        span: it gets an error with the reason that is most common, and how many failed.
        reasons: one for each file, node or text that failed; none leaves the span as it is.
    """
    if reasons:
        span.set_attribute(_FAILED, len(reasons))
        span.set_status(Status(StatusCode.ERROR, Counter(reasons).most_common(1)[0][0]))


def _reason_of(error: Exception) -> str:
    """Returns the documented reason of an error, or its type; of a group those of its first."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error.reason if isinstance(error, LodestoneError) else type(error).__name__
