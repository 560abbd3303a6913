"""What traces cost a cold run: the same index with them off, into files, and to a collector.

Four installations run side by side: two without traces, whose difference is what the machine does
by itself, one that writes files, one that sends OTLP to a collector. Each block indexes one new
tree in all of them, in an order that goes round. CPU time is that of the three services, parsers
included and PostgreSQL not, from the call until the last spans have left, for as long in each.
"""

from __future__ import annotations

import os
import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from services.runtime.span_exporter import FileSpanExporter
from services.runtime.span_files import SpanFiles, span_files
from tests.bench.figures import cpu_seconds_of, figure, print_measured, say
from tests.bench.generate import write_tree
from tests.bench.indexer_rig import Rig, running
from tests.support.collector import collecting

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from tests.support.collector import Collector

_FILES, _FUNCTIONS = 800, 8
_BLOCKS = int(os.environ.get("LODESTONE_BENCH_BLOCKS", "8"))
_SENT_SECONDS = 6.0
"""Time after a run in which its last spans leave: the SDK sends every 5 s."""

_OFF, _AGAIN, _IN_FILES, _OTLP = "off", "off_again", "files", "otlp"
_ROUNDS, _SPANS = 5, 20_000


@dataclass
class _Mode:
    """One installation, and what each block took in it: CPU seconds, and seconds of the run."""

    rig: Rig
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)


def measure(scratch: Path) -> dict[str, dict[str, Any]]:
    """Returns ratios to the run without traces, spans of a run, and CPU time of one span."""
    trees, folder = scratch / "trees", scratch / "spans"
    trees.mkdir()
    with ExitStack() as opened:
        collector, endpoint = opened.enter_context(collecting())
        made = {
            _OFF: running(trees),
            _AGAIN: running(trees),
            _IN_FILES: running(trees, traces_folder=str(folder)),
            _OTLP: running(trees, otlp_endpoint=endpoint),
        }
        modes = {mode: _Mode(opened.enter_context(rig)) for mode, rig in made.items()}
        _blocks(modes, trees)
        spans = len(collector.spans) / (_BLOCKS + 1)
        written = sum(path.stat().st_size for path in span_files(folder))
        _check_same_spans(collector, folder)
    off = modes[_OFF]
    figures = {
        "traces_cpu_seconds_off": figure(min(off.cpu)),
        "traces_wall_seconds_off": figure(min(off.wall)),
        "traces_spans_of_a_run": figure(spans, digits=0),
        "traces_file_bytes_of_a_run": figure(written / (_BLOCKS + 1), digits=0),
    }
    for name in (_AGAIN, _IN_FILES, _OTLP):
        figures |= _compared("cpu", name, modes[name].cpu, off.cpu)
        figures |= _compared("wall", name, modes[name].wall, off.wall)
    return figures | _span_costs(scratch)


def _blocks(modes: Mapping[str, _Mode], trees: Path) -> None:
    """Indexes a tree in each mode for each block; the first block warms up and is not counted."""
    for block in range(_BLOCKS + 1):
        name = f"block-{block}"
        write_tree(trees / name, files=_FILES, functions=_FUNCTIONS, seed=block + 1)
        order = list(modes)
        at = block % len(order)
        for mode in (*order[at:], *order[:at]):
            cpu, wall = _index(modes[mode].rig, name)
            if block:
                modes[mode].cpu.append(cpu)
                modes[mode].wall.append(wall)
                say(f"block {block}, {mode}: {cpu:.2f} s of CPU, {wall:.2f} s")


def _index(rig: Rig, name: str) -> tuple[float, float]:
    """Returns CPU seconds of the services until all spans have left, and seconds of the run."""
    rig.create(name, name)
    members = (rig.io, rig.embed, rig.indexer)
    before = sum(cpu_seconds_of(member.pid) for member in members)
    wall, _ = rig.index(name)
    time.sleep(_SENT_SECONDS)
    return sum(cpu_seconds_of(member.pid) for member in members) - before, wall


def _check_same_spans(collector: Collector, folder: Path) -> None:
    """Raises RuntimeError if one of the two ways lost spans; ids of links are in files as well."""
    written = sum(path.read_bytes().count(b'"spanId"') for path in span_files(folder))
    if not 0.5 < written / max(1, len(collector.spans)) < 2:
        raise RuntimeError(f"{written} ids in files, and {len(collector.spans)} spans were sent")


def _compared(
    what: str, name: str, found: Sequence[float], off: Sequence[float]
) -> dict[str, dict[str, Any]]:
    """Returns the ratio of the least, and the median, least and largest of those by blocks."""
    ratios = [one / other for one, other in zip(found, off, strict=True)]
    return {
        f"traces_{what}_{name}_to_off_minima": figure(min(found) / min(off)),
        f"traces_{what}_{name}_to_off_median": figure(statistics.median(ratios)),
        f"traces_{what}_{name}_to_off_least": figure(min(ratios)),
        f"traces_{what}_{name}_to_off_largest": figure(max(ratios)),
    }


def _span_costs(scratch: Path) -> dict[str, dict[str, Any]]:
    """Returns the CPU time of one span that goes nowhere, and of one that goes into a file."""
    made: dict[str, list[float]] = {"made": [], "written": []}
    folder = scratch / "single"
    ways: dict[str, Callable[[], BatchSpanProcessor | None]] = {
        "made": lambda: None,
        "written": lambda: BatchSpanProcessor(
            FileSpanExporter(SpanFiles(folder, "bench")), max_queue_size=2 * _SPANS
        ),
    }
    for _ in range(_ROUNDS):
        for way, processor in ways.items():
            made[way].append(_seconds_of_a_span(processor()))
    return {
        f"traces_span_{way}_cpu_microseconds": figure(min(seconds) * 1e6, digits=1)
        for way, seconds in made.items()
    }


def _seconds_of_a_span(processor: BatchSpanProcessor | None) -> float:
    provider = TracerProvider(resource=Resource.create({"service.name": "bench"}))
    if processor is not None:
        provider.add_span_processor(processor)
    tracer = provider.get_tracer("bench")
    started = time.process_time()
    for _ in range(_SPANS):
        with tracer.start_as_current_span("work", attributes={"lodestone.nodes": 128}):
            pass
    provider.shutdown()
    return (time.process_time() - started) / _SPANS


if __name__ == "__main__":
    print_measured(measure)
