"""Draws a trace in the terminal: as wide as that is, in colour where it has any."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from services.cli.follow import FINISHED
from services.cli.report import error_reason, seconds_of, state_name
from services.cli.trace.summary import (
    Operation,
    busy_stages,
    counts_of,
    failures,
    merged,
    operation_of,
    operation_times,
    share_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import JustifyMethod

    from services.cli.trace.critical_path import Node
    from services.cli.trace.report import TraceReport
    from services.cli.trace.summary import Row, SpanFailure

_FILE_COLUMNS = 120
"""Width where nobody says one."""

_LEAST_SHARE = 0.002
"""Rows with less of the whole time are only counted."""

_BARS = " ▁▂▃▄▅▆▇█"
_PLAIN_BARS = " .:-=+*#@"
_BAR_COLUMNS = ((150, 60), (120, 30), (100, 20), (0, 10))
"""Cells of a bar, by the width of the terminal from which on they have room."""

_COLOURS = {"cli": "white", "indexer": "cyan", "io": "green", "embed": "magenta"}
_OPERATIONS = 15
_FAILURES = 10
_DEEPEST = 24
"""Steps in from the left at most, whatever the depth."""
_MOST_STEPS = 24
"""Operations around a failure that are named; of more, as many as that, from both ends."""
_FAILED_SIGN = "!"
"""Before the name of an operation that failed, as a file has no colour."""

_OPERATION = "operation"
_REASON = "ERROR_REASON_"
_LEAST_NAME = 24
"""Least width of the names of operations: a narrower terminal wraps the lines."""


def draw(report: TraceReport, *, unmerged: bool) -> None:
    """Prints a trace on standard output."""
    columns = None
    if not sys.stdout.isatty() and "COLUMNS" not in os.environ:
        columns = _FILE_COLUMNS
    console = Console(width=columns, highlight=False)
    _draw_head(console, report)
    _draw_failures(console, report)
    if unmerged:
        _draw_segments(console, report)
    else:
        _draw_rows(console, report)
    _draw_operations(console, report)
    _draw_missing(console, report)


def label_of(operation: Operation) -> str:
    """Returns an operation's name without what its service says already."""
    name = operation.name
    if "/" in name:
        method = name.rpartition(".")[2]
        return f"call {method}" if operation.is_client else method
    if operation.service == "cli":
        return name.replace(".cli.", " ")
    return name.removeprefix(f"lodestone.{operation.service}.")


def time_of(nanoseconds: int) -> str:
    """Returns a time in the unit that suits it."""
    seconds = nanoseconds / 1e9
    if seconds >= 10:
        return f"{seconds:,.1f} s"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"


def bar_of(cells: Sequence[float], columns: int, signs: str) -> str:
    """Returns a bar of shares; a cell with anything in it is never blank."""
    width = len(cells) // columns
    shares = [sum(cells[at : at + width]) / width for at in range(0, width * columns, width)]
    last = len(signs) - 1
    return "".join(signs[min(last, max(share > 0.001, round(share * last)))] for share in shares)


def _draw_head(console: Console, report: TraceReport) -> None:
    root, run = report.root, report.run
    if run is not None:
        console.print(Text(run.name, style="bold"))
        state = state_name(run).replace("_", " ")
        several = report.tree.owners > 1
        owners = f", {report.tree.owners} owners" if several else ""
        console.print(Text(f"Run {state}, {seconds_of(run):.2f} s{owners}"))
        if run.HasField("error"):
            reason = error_reason(run.error).removeprefix(_REASON)
            console.print(Text(f"Error {reason}: {run.error.message}", style="red"))
    console.print(Text(f"Trace {report.trace_id}, {time_of(root.end_ns - root.start_ns)}"))
    busy = busy_stages(report.tree)
    if busy:
        told = (
            f"{each.stage} {time_of(each.busy_ns)} ({share_of(each.busy_ns, root):.0%})"
            for each in busy
        )
        console.print(Text(f"Busy  {', '.join(told)} (they overlap)"))


def _draw_failures(console: Console, report: TraceReport) -> None:
    """Prints where spans failed: also of what went well when it was tried again."""
    found = failures(report.tree)
    if not found:
        return
    _draw_title(console, "Failed: the lowest spans with an error, in the order of time")
    for each in found[:_FAILURES]:
        at = time_of(each.first_ns - report.root.start_ns)
        told = Text(f"{at:>8}  ")
        told.append(_chain_of(each), style="red")
        told.append(f": {each.error.removeprefix(_REASON) or 'no reason was told'}")
        told.append(_extent_of(each, report.root))
        console.print(told)
    if len(found) > _FAILURES:
        console.print(Text(f"and {len(found) - _FAILURES:,} more"))


def _chain_of(failure: SpanFailure) -> str:
    """Returns the operations from below the root to what failed; a service where it changes."""
    steps = [*failure.within[1:], failure.operation]
    services = ["", *(step.service for step in steps)]
    labels = [
        label_of(step) if step.service == before else f"{step.service} {label_of(step)}"
        for step, before in zip(steps, services, strict=False)
    ]
    if left := max(0, len(labels) - _MOST_STEPS):
        half = _MOST_STEPS // 2
        labels[half:-half] = [f"({left:,} more)"]
    return " > ".join(labels)


def _extent_of(failure: SpanFailure, root: Node) -> str:
    told = [f"{failure.items:,} failed"] if failure.items else []
    if failure.spans > 1:
        last = time_of(failure.last_ns - root.start_ns)
        told.append(f"{failure.spans:,} spans, the last at {last}")
    return f" ({'; '.join(told)})" if told else ""


def _draw_rows(console: Console, report: TraceReport) -> None:
    root = report.root
    rows = list(merged(root, report.path).all_rows())
    shown = [row for row in rows if share_of(row.total_ns, root) >= _LEAST_SHARE or not row.depth]
    columns = next(cells for least, cells in _BAR_COLUMNS if console.width >= least)
    signs = _BARS if console.encoding.lower().startswith("utf") else _PLAIN_BARS
    lines = [
        (
            time_of(row.start_ns - root.start_ns),
            time_of(row.total_ns),
            time_of(row.own_ns),
            f"{share_of(row.own_ns, root):.1%}",
            f"{len(row.spans):,}",
            _operation(row.operation, row.depth, failed=bool(row.failed)),
            Text(bar_of(row.cells, columns, signs), style=_style(row.operation)),
            _counted(row.counts),
        )
        for row in shown
    ]
    _draw_title(console, "Critical path: what the end waited for")
    header = ("?>at", "?>time", ">own", ">share", ">spans", _OPERATION, "?when", "?what")
    _draw_table(console, header, lines)
    _draw_rest(console, rows, shown, root)


def _draw_rest(console: Console, rows: Sequence[Row], shown: Sequence[Row], root: Node) -> None:
    left = [row for row in rows if row not in shown]
    if left:
        own_ns = sum(row.own_ns for row in left)
        share = share_of(own_ns, root)
        console.print(Text(f"and {len(left):,} more of {time_of(own_ns)} in all ({share:.1%})"))


def _draw_segments(console: Console, report: TraceReport) -> None:
    root = report.root
    lines = [
        (
            time_of(segment.start_ns - root.start_ns),
            time_of(segment.duration_ns),
            f"{share_of(segment.duration_ns, root):.1%}",
            _operation(operation_of(span), 0, failed=span.failed),
            span.span_id,
            _counted(counts_of(span)),
        )
        for segment, span in ((segment, segment.node.span) for segment in report.path)
    ]
    _draw_title(console, f"Critical path: {len(report.path):,} steps in the order of time")
    _draw_table(console, (">at", ">own", "?>share", _OPERATION, "?span", "?what"), lines)


def _draw_operations(console: Console, report: TraceReport) -> None:
    """Prints the operations with most of the path, with how long each of their spans took."""
    on_path = [each for each in operation_times(report.tree, report.path) if each.path_ns]
    lines = [
        (
            time_of(each.path_ns),
            f"{share_of(each.path_ns, report.root):.1%}",
            f"{each.path_spans:,} of {each.spans:,}",
            time_of(each.p50_ns),
            time_of(each.max_ns),
            _operation(each.operation, 0, failed=False),
        )
        for each in on_path[:_OPERATIONS]
    ]
    _draw_title(console, "By operation: its own time on the path; p50 and max of all its spans")
    _draw_table(console, (">own", ">share", "?>spans", "?>p50", "?>max", _OPERATION), lines)


def _draw_missing(console: Console, report: TraceReport) -> None:
    missing = report.tree.missing
    if report.run is not None and report.run.state not in FINISHED:
        console.print(Text("The run has not ended: what is still open is not among the spans."))
    elif missing:
        told = "1 span is" if missing == 1 else f"{missing:,} spans are"
        console.print(
            Text(
                f"At least {told} missing: removed for newer ones, lost with a process that was "
                "killed, or written elsewhere.",
                style="yellow",
            )
        )
    if not report.tree.caller_known:
        console.print(Text("The span of who asked is not among these files."))


def _draw_title(console: Console, text: str) -> None:
    console.print()
    console.print(Text(text, style="bold"))


def _draw_table(
    console: Console, header: Sequence[str], lines: Sequence[Sequence[str | Text]]
) -> None:
    """Prints a table; where it is too wide, names of operations are cut, then columns left out.

    Names of columns begin with `>` for numbers, and before that with `?` where they may be left
    out, the last ones first.
    """
    columns = list(zip(header, *lines, strict=True))
    while _width(columns) > console.width and any(_may_go(column) for column in columns):
        del columns[max(at for at, column in enumerate(columns) if _may_go(column))]
    room = console.width - _width(columns) + _LEAST_NAME
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name, *cells in columns:
        title = str(name).lstrip("?>")
        width = max(map(len, (title, *cells)))
        width = max(_LEAST_NAME, min(width, room)) if title == _OPERATION else width
        justify: JustifyMethod = "right" if ">" in str(name) else "left"
        table.add_column(title, justify=justify, width=width, no_wrap=True, overflow="ellipsis")
    for line in zip(*(cells for _, *cells in columns), strict=True):
        table.add_row(*line)
    console.print(table, crop=False)


def _width(columns: Sequence[Sequence[str | Text]]) -> int:
    """Returns the width of columns when names of operations are as short as may be."""
    return sum(
        2 + (_LEAST_NAME if name == _OPERATION else max(map(len, (str(name).lstrip("?>"), *cells))))
        for name, *cells in columns
    )


def _may_go(column: Sequence[str | Text]) -> bool:
    return str(column[0]).startswith("?")


def _operation(operation: Operation, depth: int, *, failed: bool) -> Text:
    text = Text("  " * min(depth, _DEEPEST))
    text.append(f"{operation.service} ", style=f"dim {_style(operation)}")
    sign = f"{_FAILED_SIGN} " if failed else ""
    text.append(f"{sign}{label_of(operation)}", style="red" if failed else _style(operation))
    return text


def _style(operation: Operation) -> str:
    return _COLOURS.get(operation.service, "white")


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} {unit}" for unit, number in counts.items())
