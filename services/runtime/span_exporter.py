"""Writes finished spans into files, for a machine that has no collector."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

from google.protobuf.json_format import MessageToDict
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from services.runtime.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from opentelemetry.sdk.trace import ReadableSpan

    from services.runtime.span_files import SpanFiles

_IDS = ("traceId", "spanId", "parentSpanId")


class FileSpanExporter(SpanExporter):
    """Writes each batch as one line; called on a thread of the SDK's.

    What cannot be written is dropped, and told of once until writing works again.
    """

    def __init__(self, files: SpanFiles) -> None:
        self._files = files
        self._failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Writes spans. Raises nothing."""
        try:
            self._files.append(line_of(spans))
        except OSError as error:
            if not self._failing:
                get_logger().warning("spans_not_written", reason=error.strerror)
            self._failing = True
            return SpanExportResult.FAILURE
        self._failing = False
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Closes the file."""
        self._files.close()


def line_of(spans: Sequence[ReadableSpan]) -> bytes:
    """Returns spans as a line of OTLP/JSON, which writes ids in hex where protobuf's has base64."""
    request = MessageToDict(encode_spans(spans), use_integers_for_enums=True)
    for resource in request["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            scope["spans"] = [
                {**_with_hex(span), "links": [_with_hex(link) for link in span.get("links", ())]}
                for span in scope["spans"]
            ]
    return json.dumps(request, separators=(",", ":")).encode()


def _with_hex(message: Mapping[str, Any]) -> dict[str, Any]:
    ids = {name: base64.b64decode(message[name]).hex() for name in _IDS if name in message}
    return {**message, **ids}
