"""Traces and the metrics port of a process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import prometheus_client
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from services.runtime.exits import ExitCode, StartError
from services.runtime.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

_EXPORT_SECONDS = 1.5
"""Longest time of sending one batch of spans: a dead collector must not hold up a stop."""


def configure_traces(service: str, otlp_endpoint: str) -> Callable[[], None]:
    """Sets up tracing for the process; spans leave it only when an endpoint is given.

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
    trace.set_tracer_provider(provider)
    return provider.shutdown


def tracer() -> trace.Tracer:
    """Returns the tracer of this process."""
    return trace.get_tracer("lodestone")


def serve_metrics(address: str, variable: str) -> Callable[[], None]:
    """Serves `/metrics` on `host:port`; returns a function that stops.

    Raises:
        StartError: the address is in use or not this machine's.
    """
    host, _, port = address.rpartition(":")
    try:
        server, thread = prometheus_client.start_http_server(int(port), host.strip("[]"))
    except OSError as error:
        raise StartError(
            ExitCode.ADDRESS_IN_USE,
            f"Cannot serve metrics on {address} ({error.strerror}). "
            f"Free the port or set {variable} to another address.",
        ) from None
    get_logger().info("metrics_ready", listen=f"{host}:{server.server_port}")

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)

    return stop
