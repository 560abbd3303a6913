"""`lodestone index`: brings the index of a folder up to date and reports what that took."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lodestone.indexer.v1.index_run_service_pb2 import IndexRun
from services.cli.environment import DEFAULT_ROOTS, EMBED_MODEL, IO_ROOTS
from services.cli.folder import DataFolder, default_root
from services.cli.follow import RunFollower
from services.cli.indexer import Indexer
from services.cli.progress import ProgressDisplay
from services.cli.report import (
    SHOWN_FAILURES,
    exit_code,
    outcome_json,
    print_report,
    run_json,
)
from services.cli.stack import Stack
from services.cli.terminal import note, warn
from services.cli.trees import check_workspace_id, resolve_tree
from services.runtime.exits import ExitCode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lodestone.indexer.v1.index_run_service_pb2 import Outcome

_MOST_JOINS = 3
FIRST_QUERY = "where does the program start"


@dataclass(frozen=True, slots=True)
class IndexOptions:
    """What the command line asks of `index`."""

    root: Path
    """Data folder."""
    path: str
    workspace: str
    full: bool
    exclude: Sequence[str]
    only: Sequence[str]
    model: str
    as_json: bool
    first_search: bool
    query: str


def run_index(options: IndexOptions) -> ExitCode:
    """Indexes, reports, and returns what the command ends with."""
    environment = dict(os.environ)
    if options.model:
        environment[EMBED_MODEL] = options.model
    # A wrong path is told before anything is started for it.
    tree = resolve_tree(options.path, environment.get(IO_ROOTS, DEFAULT_ROOTS))
    wanted = check_workspace_id(options.workspace) if options.workspace else tree.workspace_id
    state = Stack(options.root, environment).ensure()
    if state.roots != environment.get(IO_ROOTS, DEFAULT_ROOTS):
        tree = resolve_tree(options.path, state.roots)
    indexer = Indexer(state.processes["indexer"].address)
    try:
        workspace = indexer.create_workspace(wanted, tree).name
        if options.workspace and workspace != f"workspaces/{wanted}":
            note(f"This folder is the workspace {workspace.removeprefix('workspaces/')} already.")
        run = _run_to_end(indexer, DataFolder(options.root), workspace, options)
        failures = _failures(indexer, run)
        _tell(run, failures, options)
        if options.first_search and exit_code(run) is ExitCode.OK and not options.as_json:
            _first_search(indexer, workspace, options)
        return exit_code(run)
    finally:
        indexer.close()


def _run_to_end(
    indexer: Indexer, folder: DataFolder, workspace: str, options: IndexOptions
) -> IndexRun:
    """Makes a run and follows it; behind a run that was there already, makes one of its own.

    The other run may have passed files before they changed; the own one finds that out.
    """
    for _ in range(_MOST_JOINS):
        run, created = indexer.create_run(
            workspace, full=options.full, exclude=options.exclude, only=options.only
        )
        if not created:
            note("A run of this workspace is not finished: following it to its end first.")
        run = RunFollower(indexer, folder, ProgressDisplay()).follow(run)
        if created or run.state in {IndexRun.STATE_CANCELLED, IndexRun.STATE_PAUSED}:
            break
    return run


def _failures(indexer: Indexer, run: IndexRun) -> list[Outcome]:
    if not run.progress.files_failed and not run.progress.nodes_failed:
        return []
    return indexer.failures(run.name, SHOWN_FAILURES)


def _tell(run: IndexRun, failures: Sequence[Outcome], options: IndexOptions) -> None:
    if options.as_json:
        click.echo(json.dumps(run_json(run)))
        for warning in run.warnings:
            warn(warning)
        if run.HasField("error") and run.error.message:
            warn(run.error.message)
        for outcome in failures:
            warn(f"{outcome.path}: {outcome_json(outcome)['reason']}")
    else:
        print_report(run, failures)
    if run.state == IndexRun.STATE_CANCELLED:
        note("Cancelled. Run the same command again: it goes on where it was.")
    elif run.state == IndexRun.STATE_PAUSED:
        note(f"Paused. It goes on with: lodestone resume {run.name.rpartition('/')[2]}")
    elif exit_code(run) is not ExitCode.OK:
        note(f"What failed: lodestone run {run.name}")
    elif not options.as_json and not options.first_search:
        click.echo(_next_command(options))


def _first_search(indexer: Indexer, workspace: str, options: IndexOptions) -> None:
    from services.cli.hits import print_hits
    from services.cli.search import find

    query = options.query or FIRST_QUERY
    click.secho(f'\nFirst search: "{query}"', bold=True)
    print_hits(find(indexer, workspace, query, limit=3))
    click.echo(_next_command(options))


def _next_command(options: IndexOptions) -> str:
    """Returns what to try now, as a shell takes it in the folder where this command ran."""
    arguments = ["--path", options.path]
    if options.root != default_root(os.environ):
        arguments = ["--data-dir", str(options.root), *arguments]
    program = sys.argv[0] if Path(sys.argv[0]).name == "lodestone" else "lodestone"
    if shutil.which("lodestone"):
        program = "lodestone"
    return f'Try: {shlex.join([program, "search", *arguments])} "what you look for"'
