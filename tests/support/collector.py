"""A collector of traces that speaks OTLP over gRPC, on loopback."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Step = tuple[str, str]
"""A span, as the service that ended it and its name."""


@dataclass(frozen=True)
class Received:
    """A span as the collector got it."""

    span: Any
    resource: Mapping[str, str]
    """What its process tells of itself."""

    @property
    def service(self) -> str:
        """The service that ended it."""
        return self.resource["service.name"]

    @property
    def attributes(self) -> dict[str, str]:
        """The attributes, each value as text."""
        return {item.key: str(item.value) for item in self.span.attributes}

    @property
    def step(self) -> Step:
        """The service and the name."""
        return self.service, self.span.name


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps the spans that it is sent, by their id."""

    def __init__(self) -> None:
        self.spans: dict[bytes, Received] = {}
        self.requests: list[bytes] = []

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the name is gRPC's
        """Takes spans."""
        self.requests.append(request.SerializeToString())
        for resource in request.resource_spans:
            told = {item.key: item.value.string_value for item in resource.resource.attributes}
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.spans[span.span_id] = Received(span, told)
        return trace_service_pb2.ExportTraceServiceResponse()

    def named(self, service: str, name: str) -> list[Received]:
        """Returns the spans of a service with a name."""
        return [received for received in self.spans.values() if received.step == (service, name)]

    def path(self, received: Received) -> list[Step]:
        """Returns the steps from the root of the span's trace to the span, by parents."""
        steps = [received.step]
        while received.span.parent_span_id:
            parent = self.spans[received.span.parent_span_id]
            assert parent.span.trace_id == received.span.trace_id
            received = parent
            steps.insert(0, received.step)
        return steps

    def paths(self, service: str, name: str) -> list[list[Step]]:
        """Returns the paths of all spans of a service with a name."""
        return [self.path(received) for received in self.named(service, name)]


@contextlib.contextmanager
def collecting() -> Iterator[tuple[Collector, str]]:
    """Yields a collector and its address, as `LODESTONE_OTLP_ENDPOINT` takes it."""
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(4))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield collector, f"http://127.0.0.1:{port}"
    finally:
        server.stop(grace=5).wait()
