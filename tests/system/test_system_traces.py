"""One trace tells of a batch in all three services, as a real collector receives it over OTLP."""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from tests.support.stack import lodestone

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps what it is sent: for each trace, the names of spans by service."""

    def __init__(self) -> None:
        self.traces: dict[bytes, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the name is gRPC's
        """Takes spans."""
        for resource in request.resource_spans:
            attributes = {
                item.key: item.value.string_value for item in resource.resource.attributes
            }
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.traces[span.trace_id][attributes["service.name"]].add(span.name)
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
def collector() -> Iterator[tuple[Collector, str]]:
    """A collector and where it listens."""
    server = grpc.server(ThreadPoolExecutor(max_workers=4))
    collector = Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield collector, f"http://127.0.0.1:{port}"
    server.stop(grace=5).wait()


def test_fetch_forward_and_commit_of_a_batch_share_one_trace(
    collector: tuple[Collector, str], flask: Path
) -> None:
    received, endpoint = collector
    for product in lodestone(EMBED_MODEL="hashing", OTLP_ENDPOINT=endpoint):
        product.index(flask)
        assert product.run("down").code == 0  # sends what is left

    joined = [spans for spans in received.traces.values() if len(spans) == 3]
    names = [{name for service in spans.values() for name in service} for spans in joined]
    assert all(
        set(spans) == {"lodestone-indexer", "lodestone-io", "lodestone-embed"} for spans in joined
    )
    assert any(
        any("ReadContents" in name for name in found)
        and any(name.endswith("/Embed") for name in found)
        and "lodestone.indexer.commit" in found
        for found in names
    ), names
