"""`lodestone pause`, `resume`, `cancel` and `retry`: what is asked of one run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Literal, assert_never

import click

from services.cli.listing import connect, find_run
from services.cli.report import run_json, state_name
from services.runtime.exits import ExitCode

if TYPE_CHECKING:
    from pathlib import Path

    from lodestone.indexer.v1.index_run_service_pb2 import IndexRun
    from services.cli.indexer import Indexer

Wish = Literal["pause", "resume", "cancel", "retry"]


def steer(root: Path, wish: Wish, name: str, *, as_json: bool) -> ExitCode:
    """Asks something of a run, and prints the run as it is then.

    Raises:
        StartError: there is no such run, or its state does not allow this.
    """
    indexer, _ = connect(root)
    run = _ask(indexer, wish, find_run(indexer, name).name)
    if as_json:
        click.echo(json.dumps(run_json(run)))
    else:
        click.echo(f"{run.name} is {state_name(run).replace('_', ' ')}.")
    return ExitCode.OK


def _ask(indexer: Indexer, wish: Wish, name: str) -> IndexRun:
    match wish:
        case "pause":
            return indexer.pause_run(name)
        case "resume":
            return indexer.resume_run(name)
        case "cancel":
            indexer.cancel_run(name)
            return indexer.get_run(name)
        case "retry":
            return indexer.retry_run(name)
    assert_never(wish)
