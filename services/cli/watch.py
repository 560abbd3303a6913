"""`lodestone watch`: keeps the index of a folder true to it while somebody works there."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from lodestone.indexer.v1.index_run_service_pb2 import IndexRun
from services.cli.deaths import check_alive
from services.cli.environment import DEFAULT_ROOTS, IO_ROOTS
from services.cli.folder import DataFolder
from services.cli.follow import FINISHED, RunFollower
from services.cli.indexer import Indexer
from services.cli.progress import ProgressDisplay
from services.cli.report import print_report, run_json, seconds_of, state_name
from services.cli.stack import Stack
from services.cli.state import read_state
from services.cli.terminal import note, warn
from services.cli.trees import check_workspace_id, resolve_tree
from services.runtime.exits import ExitCode, StartError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import FrameType

    from lodestone.indexer.v1.workspace_service_pb2 import Workspace

_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_POLL_SECONDS = 0.3
_POLLS_PER_CHECK = 10
_GIVE_UP_POLLS = 100
_PAGE_RUNS = 50
_MOST_NAMES = 3
_STOPPED = frozenset({IndexRun.STATE_CANCELLED, IndexRun.STATE_PAUSED})
_GOES_ON = "Run the same command again: it goes on where it was."


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """What the command line asks of `watch`."""

    root: Path
    """Data folder."""
    path: str
    workspace: str
    keep: bool
    """Whether the workspace stays live when the command ends."""
    as_json: bool


def run_watch(options: WatchOptions) -> ExitCode:
    """Indexes, lets the folder be watched, and tells of each run until Ctrl+C.

    Raises:
        StartError: the folder cannot be indexed, or a service died.
    """
    roots = os.environ.get(IO_ROOTS, DEFAULT_ROOTS)
    tree = resolve_tree(options.path, roots)
    wanted = check_workspace_id(options.workspace) if options.workspace else tree.workspace_id
    state = Stack(options.root, os.environ).ensure()
    if state.roots != roots:
        tree = resolve_tree(options.path, state.roots)
    with contextlib.closing(Indexer(state.processes["indexer"].address)) as indexer:
        workspace = indexer.create_workspace(wanted, tree)
        run = _bring_up_to_date(indexer, DataFolder(options.root), workspace.name)
        _tell_first(run, options)
        if run.state not in {IndexRun.STATE_SUCCEEDED, IndexRun.STATE_SUCCEEDED_WITH_WARNINGS}:
            return ExitCode.INTERRUPTED if run.state in _STOPPED else ExitCode.FAILED
        with _live(indexer, workspace, keep=options.keep), _interrupts() as stopped:
            _follow(indexer, DataFolder(options.root), run, options, stopped)
    return ExitCode.OK


def run_unwatch(root: Path, path: str, workspace: str, *, as_json: bool) -> ExitCode:
    """Ends that a folder is watched; one that is not watched stays so."""
    state = Stack(root, os.environ).ensure()
    wanted = check_workspace_id(workspace or resolve_tree(path, state.roots).workspace_id)
    with contextlib.closing(Indexer(state.processes["indexer"].address)) as indexer:
        left = indexer.set_live(f"workspaces/{wanted}", live=False)
    name = left.name.removeprefix("workspaces/")
    click.echo(
        json.dumps({"workspace": name, "live": False}) if as_json else f"{name} is not live."
    )
    return ExitCode.OK


def _bring_up_to_date(indexer: Indexer, folder: DataFolder, workspace: str) -> IndexRun:
    """Returns the run that did, at its end; Ctrl+C cancels it."""
    run, created = indexer.create_run(workspace, full=False, exclude=())
    if not created:
        note("A run of this workspace is not finished: following it to its end first.")
    return RunFollower(indexer, folder, ProgressDisplay()).follow(run)


@contextlib.contextmanager
def _live(indexer: Indexer, workspace: Workspace, *, keep: bool) -> Iterator[None]:
    """Lets the workspace be watched meanwhile; one that was before stays live afterwards."""
    indexer.set_live(workspace.name, live=True)
    try:
        yield
    finally:
        if not (keep or workspace.live):
            _end_watch(indexer, workspace.name)


def _end_watch(indexer: Indexer, workspace: str) -> None:
    try:
        indexer.set_live(workspace, live=False)
    except StartError as error:
        note(f"{error.message} It stays live until `lodestone unwatch`.")


@contextlib.contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Yields an event that Ctrl+C and SIGTERM set; a second one leaves at once."""
    stopped = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _follow(
    indexer: Indexer,
    folder: DataFolder,
    first: IndexRun,
    options: WatchOptions,
    stopped: threading.Event,
) -> None:
    """Tells of each run of the watcher once it has ended, until it is to stop."""
    workspace = first.name.partition("/indexRuns/")[0]
    news = _News(indexer, workspace, first)
    failures = polls = 0
    if not options.as_json:
        note(f"Watching {options.path}; press Ctrl+C to stop.")
    while not stopped.wait(_POLL_SECONDS):
        try:
            ended = news.ended()
            if polls % _POLLS_PER_CHECK == 0:
                indexer.set_live(workspace, live=True)  # another `watch` may have ended it
            failures, polls = 0, polls + 1
        except StartError as error:
            failures += 1
            check_alive(folder, read_state(folder.state), _GOES_ON)
            if error.code is not ExitCode.UNAVAILABLE or failures > _GIVE_UP_POLLS:
                raise
            continue
        for run in ended:
            click.echo(json.dumps(_line_json(run)) if options.as_json else line(run))


class _News:
    """The runs of a workspace that ended since they were last asked for, each once."""

    def __init__(self, indexer: Indexer, workspace: str, first: IndexRun) -> None:
        self._indexer = indexer
        self._workspace = workspace
        self._since = first.create_time.ToNanoseconds()
        self._told = {first.name}

    def ended(self) -> list[IndexRun]:
        """Returns runs that a watcher made, the oldest first. Raises StartError."""
        runs: list[IndexRun] = []
        for run in self._indexer.each_run(self._workspace, _PAGE_RUNS):
            if run.create_time.ToNanoseconds() < self._since:
                break
            runs.append(run)
        new = [run for run in runs if run.state in FINISHED and run.name not in self._told]
        # What is older than the oldest run at work need not be looked at again.
        working = [run for run in runs if run.state not in FINISHED]
        oldest = min(working or runs, key=lambda run: run.create_time.ToNanoseconds(), default=None)
        if working and oldest is not None:
            self._since = oldest.create_time.ToNanoseconds()
        elif runs:
            self._since = runs[0].create_time.ToNanoseconds()
        self._told = {run.name for run in runs if run.state in FINISHED}
        return [run for run in reversed(new) if run.trigger != IndexRun.TRIGGER_CALLER]


def line(run: IndexRun) -> str:
    """Returns what a run of a watcher did, in one line."""
    counts = run.progress
    time = run.end_time.ToDatetime().isoformat(timespec="seconds").partition("T")[2]
    parts = [
        f"{time} {_what(run)}",
        f"{counts.nodes_embedded:,} embedded, {counts.nodes_removed:,} removed",
        f"{seconds_of(run):.2f} s",
    ]
    freshness = freshness_of(run)
    if freshness is not None:
        parts.append(f"searched {freshness:.2f} s after the change")
    if run.state != IndexRun.STATE_SUCCEEDED:
        parts.append(state_name(run).replace("_", " "))
    return "; ".join(parts)


def freshness_of(run: IndexRun) -> float | None:
    """Returns the seconds from the oldest change to the end of the run that is for it."""
    if not (run.HasField("change_time") and run.HasField("end_time")):
        return None
    return max(0.0, (run.end_time.ToNanoseconds() - run.change_time.ToNanoseconds()) / 1e9)


def _what(run: IndexRun) -> str:
    if run.trigger == IndexRun.TRIGGER_RECONCILE:
        return "the whole tree"
    names = [_ESCAPED.sub(r"\1", path) for path in run.paths[:_MOST_NAMES]]
    more = len(run.paths) - len(names)
    return ", ".join(names) + (f" and {more:,} more" if more else "")


def _line_json(run: IndexRun) -> dict[str, Any]:
    freshness = freshness_of(run)
    return {
        **run_json(run),
        "trigger": IndexRun.Trigger.Name(run.trigger).removeprefix("TRIGGER_").lower(),
        "paths": list(run.paths),
        "freshness_seconds": None if freshness is None else round(freshness, 3),
    }


def _tell_first(run: IndexRun, options: WatchOptions) -> None:
    if options.as_json:
        click.echo(json.dumps(_line_json(run)))
        for warning in run.warnings:
            warn(warning)
    else:
        print_report(run, [])
