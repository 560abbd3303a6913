"""Spans in files: bounded, shared, whole lines, and never a reason to fail."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import Link, SpanKind, Status, StatusCode

from services.cli.trace.spans import find_spans
from services.runtime.settings import ServiceSettings
from services.runtime.span_exporter import FileSpanExporter
from services.runtime.span_files import FILES, SpanFiles, span_files
from tests.support.small_disk import mounted_disk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from opentelemetry.trace import Tracer

_LINE = b'{"resourceSpans":[]}'


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few pages."""
    folder = tmp_path / "disk"
    folder.mkdir()
    with mounted_disk(folder, "16k", lazily=True):
        yield folder


def _fill(folder: Path) -> Path:
    """Writes a file until nothing more fits."""
    path = folder / "filler"
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(b"x" * 512):
            pass
    return path


def _traced(exporter: FileSpanExporter) -> Tracer:
    provider = TracerProvider(resource=Resource.create({"service.name": "lodestone-embed"}))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider.get_tracer("lodestone")


def test_files_of_a_name_stay_within_their_bytes_and_the_newest_lines_stay(tmp_path: Path) -> None:
    """Planted once: no file is ever removed; the newest are."""
    files = SpanFiles(tmp_path, "io", most_bytes=4000)
    for number in range(1000):
        files.append(f"{number:040d}".encode())

    kept = span_files(tmp_path, "io")
    lines = [int(line) for path in kept for line in path.read_bytes().split()]
    assert len(kept) == FILES
    assert sum(path.stat().st_size for path in kept) <= 4000
    assert lines == list(range(lines[0], 1000))
    assert len(lines) > 70


def test_a_line_that_is_larger_than_a_file_has_one_of_its_own(tmp_path: Path) -> None:
    files = SpanFiles(tmp_path, "io", most_bytes=400)
    for size in (50, 500, 50):
        files.append(b"x" * size)

    assert [path.stat().st_size for path in span_files(tmp_path)] == [51, 501, 51]


def test_processes_of_one_name_share_a_file_and_names_do_not(tmp_path: Path) -> None:
    """Planted once: a file for each process, which a thousand commands would fill a folder with."""
    for name in ("cli", "cli", "io"):
        files = SpanFiles(tmp_path, name)
        files.append(_LINE)
        files.close()

    assert [len(span_files(tmp_path, name)) for name in ("cli", "io")] == [1, 1]
    assert span_files(tmp_path, "cli")[0].read_bytes() == (_LINE + b"\n") * 2


def test_a_file_that_another_process_removed_is_begun_again(tmp_path: Path) -> None:
    files = SpanFiles(tmp_path, "io")
    files.append(_LINE)
    span_files(tmp_path)[0].unlink()
    files.append(_LINE)

    assert [path.read_bytes() for path in span_files(tmp_path)] == [_LINE + b"\n"]


def test_what_a_kill_cut_off_spoils_no_later_line(tmp_path: Path) -> None:
    """Planted once: the line goes on where the torn one ended."""
    tmp_path.joinpath("io-00000000000000000001-1.jsonl").write_bytes(_LINE + b'\n{"resour')
    SpanFiles(tmp_path, "io").append(_LINE)

    (path,) = span_files(tmp_path)
    assert path.read_bytes().splitlines() == [_LINE, b'{"resour', _LINE]


def test_a_span_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Planted once: ids as protobuf writes them in JSON, which is base64 and no OTLP."""
    tracer = _traced(FileSpanExporter(SpanFiles(tmp_path, "embed")))
    with tracer.start_as_current_span("served", kind=SpanKind.CLIENT) as served:
        context = served.get_span_context()
        served.set_status(Status(StatusCode.ERROR))
    other = tracer.start_span(
        "lodestone.embed.forward",
        links=[Link(context)],
        attributes={"lodestone.texts": 3, "lodestone.run": "r"},
    )
    other.end()

    trace_id = f"{context.trace_id:032x}"
    found = find_spans(tmp_path, trace_id)
    (span,), (forward,) = found.spans, found.forwards
    assert (span.trace_id, span.span_id) == (trace_id, f"{context.span_id:016x}")
    assert (span.service, span.name, span.parent_id) == ("embed", "served", "")
    assert (span.is_client, span.failed) == (True, True)
    assert (forward.links, forward.attributes["lodestone.texts"]) == ((span.span_id,), 3)
    assert forward.end_ns == other.end_time  # type: ignore[attr-defined]
    by_run = find_spans(tmp_path, "", "r")
    assert [each.name for each in by_run.spans] == ["lodestone.embed.forward"]
    assert _every_line(tmp_path)[0]["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["kind"] == 3


def test_a_full_disk_drops_spans_is_told_once_and_ends(small_disk: Path) -> None:
    """Planted once: each span that is dropped is told; and a cut-off line joined to the next."""
    exporter = FileSpanExporter(SpanFiles(small_disk / "traces", "embed"))
    tracer = _traced(exporter)
    tracer.start_span("before").end()
    with structlog.testing.capture_logs() as told:
        filler = _fill(small_disk)
        for number in range(50):
            tracer.start_span(f"dropped {number}").end()
        filler.unlink()
        tracer.start_span("after").end()
    exporter.shutdown()

    events = [(each["event"], each["reason"]) for each in told]
    assert events == [("spans_not_written", "No space left on device")]
    (path,) = span_files(small_disk / "traces")
    lines = path.read_bytes().splitlines()
    assert b'"before"' in lines[0]
    assert json.loads(lines[-1])["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["name"] == "after"


def test_a_folder_that_cannot_be_written_fails_no_span(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    tracer = _traced(FileSpanExporter(SpanFiles(tmp_path / "file" / "traces", "embed")))

    with structlog.testing.capture_logs() as told:
        tracer.start_span("one").end()
        tracer.start_span("two").end()

    assert [each["event"] for each in told] == ["spans_not_written"]


def test_a_service_writes_files_where_a_folder_is_given_alone(tmp_path: Path) -> None:
    off = ServiceSettings(listen="127.0.0.1:0")
    on = ServiceSettings(listen="127.0.0.1:0", traces_folder=str(tmp_path))

    assert off.span_files("io") is None
    assert on.span_files("io") is not None


def _every_line(folder: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line) for path in span_files(folder) for line in path.read_bytes().splitlines()
    ]
