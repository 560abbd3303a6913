"""`lodestone runs`, `run` and `workspaces`: what the indexer knows, as tables or JSON."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING

import click

from lodestone.indexer.v1.workspace_service_pb2 import WatchStatus
from services.cli.follow import FINISHED
from services.cli.indexer import Indexer
from services.cli.options import elsewhere
from services.cli.report import (
    mode_name,
    outcome_json,
    phase_name,
    print_report,
    run_json,
    seconds_of,
    state_name,
)
from services.cli.stack import Stack
from services.cli.trees import check_workspace_id, tree_path
from services.runtime.exits import ExitCode, StartError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from google.protobuf.timestamp_pb2 import Timestamp

    from lodestone.indexer.v1.index_run_service_pb2 import IndexRun, Outcome
    from lodestone.indexer.v1.workspace_service_pb2 import Workspace

_MOST_FAILURES = 100_000
_RUN_NAME = re.compile("workspaces/[^/]+/indexRuns/[^/]+")
_SHORT_RUN = 8


def show_runs(root: Path, workspace: str, limit: int, *, as_json: bool) -> ExitCode:
    """Prints the newest runs, newest first."""
    parent = f"workspaces/{check_workspace_id(workspace) if workspace else '-'}"
    indexer, _ = connect(root)
    runs = indexer.list_runs(parent, limit)
    if as_json:
        click.echo(json.dumps([{**run_json(run), **_place(run)} for run in runs]))
        return ExitCode.OK
    rows = [
        (
            _created(run),
            run.name,
            mode_name(run),
            state_name(run) if run.state in FINISHED else f"{state_name(run)}, {phase_name(run)}",
            f"{seconds_of(run):.1f} s",
            f"{run.progress.nodes_total:,}",
            f"{run.progress.forwards:,}",
        )
        for run in runs
    ]
    print_table(("created", "run", "mode", "state", "time", "nodes", "forwards"), rows)
    return ExitCode.OK


def show_run(root: Path, name: str, *, as_json: bool) -> ExitCode:
    """Prints one run with everything that failed in it.

    Raises:
        StartError: no run has this name, or several end with these characters.
    """
    indexer, _ = connect(root)
    run = find_run(indexer, name)
    failures = indexer.failures(run.name, _MOST_FAILURES)
    if as_json:
        shown = {**run_json(run), **_place(run), "warnings": list(run.warnings)}
        failed = [outcome_json(outcome) for outcome in failures]
        click.echo(json.dumps({**shown, "failures": failed}))
        return ExitCode.OK
    click.secho(run.name, bold=True)
    print_report(run, [])
    _print_all(failures)
    return ExitCode.OK


def show_workspaces(root: Path, *, as_json: bool) -> ExitCode:
    """Prints the workspaces with what the tables hold of each."""
    indexer, roots = connect(root)
    shown = [
        workspace_json(workspace, roots) | _counts(indexer, workspace)
        for workspace in indexer.list_workspaces()
    ]
    if as_json:
        click.echo(json.dumps(shown))
        return ExitCode.OK
    rows = [
        (str(each["workspace"]), f"{each['files']:,}", f"{each['embedded']:,}", str(each["path"]))
        for each in shown
    ]
    print_table(("workspace", "files", "nodes", "folder"), rows)
    return ExitCode.OK


def workspace_json(workspace: Workspace, roots: str) -> dict[str, object]:
    """Returns a workspace as JSON; `path` is empty when its root is not known here."""
    path = tree_path(workspace.tree.root, workspace.tree.directory, roots)
    return {
        "workspace": workspace.name.removeprefix("workspaces/"),
        "path": str(path) if path else "",
        "model": workspace.active_model.removeprefix("models/"),
        "last_run": workspace.last_index_run,
        "live": workspace.live,
        "watch": _watch_json(workspace) if workspace.live else None,
    }


def _watch_json(workspace: Workspace) -> dict[str, object]:
    watch = workspace.watch
    freshness = watch.freshness.ToNanoseconds() / 1e9 if watch.HasField("freshness") else None
    return {
        "state": WatchStatus.State.Name(watch.state).removeprefix("STATE_").lower(),
        "reconciled_at": _utc(watch.reconcile_time) if watch.HasField("reconcile_time") else None,
        "fresh_at": _utc(watch.fresh_time) if watch.HasField("fresh_time") else None,
        "freshness_seconds": None if freshness is None else round(freshness, 3),
    }


def _utc(time: Timestamp) -> str:
    return time.ToDatetime().isoformat(sep=" ", timespec="seconds")


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints aligned columns; the header alone when there are no rows."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    for number, row in enumerate((header, *rows)):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.secho(line.rstrip(), bold=number == 0)


def connect(root: Path) -> tuple[Indexer, str]:
    """Returns a client of the running indexer, started when it does not run, and io's roots.

    Of an indexer elsewhere the roots are not known, and empty.
    """
    asked = elsewhere()
    if asked.address:
        return Indexer(asked.address, tls_name=asked.tls_name), ""
    state = Stack(root, os.environ).ensure()
    return Indexer(state.processes["indexer"].address), state.roots


def find_run(indexer: Indexer, name: str, workspace: str = "workspaces/-") -> IndexRun:
    """Returns the run of a name, an id, or the first characters of an id. Raises StartError."""
    if _RUN_NAME.fullmatch(name):
        return indexer.get_run(name)
    runs = indexer.list_runs(workspace, 1000)
    begun = [run for run in runs if name and _id_of(run).startswith(name)]
    found = [run for run in begun if _id_of(run) == name]
    if len(name) >= _SHORT_RUN and not found:
        found = begun
    if len(found) == 1:
        return found[0]
    hint = "no such run. `lodestone runs` lists them."
    if found:
        hint = f"{len(found)} runs begin with it: give more of the id."
    elif begun:
        hint = f"give at least the first {_SHORT_RUN} characters of the id."
    raise StartError(ExitCode.FAILED, f"{name}: {hint}")


def _id_of(run: IndexRun) -> str:
    return run.name.rpartition("/")[2]


def _counts(indexer: Indexer, workspace: Workspace) -> dict[str, object]:
    stats = indexer.stats(workspace.name)
    return {
        "files": stats.files,
        "pending": stats.nodes_pending + stats.nodes_processing,
        "embedded": stats.nodes_embedded,
        "failed": stats.nodes_failed,
    }


def _print_all(failures: Sequence[Outcome]) -> None:
    for outcome in failures:
        shown = outcome_json(outcome)
        where = f"{shown['path']} {shown['name']}".rstrip()
        click.echo(f"  {where}: {shown['reason']} ({shown['stage']})")


def _place(run: IndexRun) -> dict[str, object]:
    """Returns what tells a run from others, and where it is in its life."""
    return {
        "created_at": _created(run),
        "mode": mode_name(run),
        "phase": phase_name(run),
        "trace_id": run.trace_id,
    }


def _created(run: IndexRun) -> str:
    return _utc(run.create_time)
