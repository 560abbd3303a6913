"""`lodestone trace`: where the time of a run went, by the spans that this machine wrote."""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from lodestone.indexer.v1.index_run_service_pb2 import IndexRun
from services.cli.caller import OTLP_ENDPOINT, traces_folder
from services.cli.listing import connect, find_run
from services.cli.trace.critical_path import critical_path
from services.cli.trace.report import TraceReport, trace_json
from services.cli.trace.spans import Found, find_spans
from services.cli.trace.tree import build_tree
from services.cli.trees import check_workspace_id
from services.runtime.exits import ExitCode, StartError
from services.runtime.span_files import TRACES_FOLDER, span_files

if TYPE_CHECKING:
    from pathlib import Path

_TRACE_ID = re.compile("[0-9a-f]{32}")
_WRITTEN_SECONDS = 1.0
"""Time after the end of a run in which its last spans are written."""


@dataclass(frozen=True, slots=True)
class TraceOptions:
    """What the command line asks of `trace`."""

    root: Path
    """Data folder."""
    name: str
    """A run, a trace, or empty for the newest run."""
    workspace: str
    folder: Path | None
    unmerged: bool
    as_json: bool


def run_trace(options: TraceOptions) -> ExitCode:
    """Draws the trace of a run.

    Raises:
        StartError: there is no such run, or no file holds a span of it.
    """
    run = None
    if not _TRACE_ID.fullmatch(options.name):
        run = _wanted_run(options)
        _wait_until_written(run)
    trace_id = options.name if run is None else run.trace_id
    run_id = "" if run is None else run.name.rpartition("/")[2]
    folder = options.folder or traces_folder(options.root)
    found = Found((), ()) if folder is None else find_spans(folder, trace_id, run_id)
    tree = build_tree(found, run_id, 0 if run is None else _owners_ended(run))
    if tree is None:
        raise _not_here(folder, trace_id, run_id)
    shown = trace_id or tree.root.span.trace_id
    report = TraceReport(shown, run, tree, critical_path(tree.root))
    if options.as_json:
        click.echo(json.dumps(trace_json(report, with_segments=options.unmerged)))
    else:
        from services.cli.trace.drawing import draw

        draw(report, unmerged=options.unmerged)
    return ExitCode.OK


def _wanted_run(options: TraceOptions) -> IndexRun:
    indexer, _ = connect(options.root)
    try:
        if options.name:
            return find_run(indexer, options.name)
        parent = check_workspace_id(options.workspace) if options.workspace else "-"
        runs = indexer.list_runs(f"workspaces/{parent}", 1)
    finally:
        indexer.close()
    if not runs:
        raise StartError(ExitCode.FAILED, "There is no run yet: `lodestone index` makes one.")
    return runs[0]


def _owners_ended(run: IndexRun) -> int:
    at_work = run.state in {
        IndexRun.STATE_RUNNING,
        IndexRun.STATE_PAUSING,
        IndexRun.STATE_CANCELLING,
    }
    return max(0, run.attempt - at_work)


def _wait_until_written(run: IndexRun) -> None:
    """Waits for the last spans of a run that has ended just now."""
    if run.HasField("end_time"):
        since = time.time() - run.end_time.ToNanoseconds() / 1e9
        if 0 <= since < _WRITTEN_SECONDS:
            time.sleep(_WRITTEN_SECONDS - since)


def _not_here(folder: Path | None, trace_id: str, run_id: str) -> StartError:
    """Returns the error that says where else the trace may be."""
    if trace_id:
        elsewhere = f"open the trace {trace_id} in your tracing backend"
    else:
        elsewhere = f"look in your tracing backend for spans with lodestone.run = {run_id}"
    if endpoint := os.environ.get(OTLP_ENDPOINT):
        elsewhere += f", which gets them from {endpoint}"
    if folder is None:
        here = f"This machine's services write no spans: {TRACES_FOLDER} is empty"
    elif not span_files(folder):
        here = f"There are no files of spans in {folder}"
    else:
        here = f"The files in {folder} hold no span of it: they were removed for newer ones, or"
        here += " services elsewhere did the work"
    return StartError(
        ExitCode.FAILED, f"{here}. Use --folder for files of another machine, or {elsewhere}."
    )
