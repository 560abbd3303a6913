"""The commands that steer runs and the queue; each loads what it needs when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from services.cli.options import Quantity, common_elsewhere

if TYPE_CHECKING:
    from services.cli.steering import Wish
    from services.runtime.exits import ExitCode

_WORKSPACE = click.option("--workspace", default="", help="This workspace alone. Default: all.")


def _steering(wish: Wish, text: str) -> click.Command:
    """Returns the command that asks one thing of one run."""

    @click.command(wish, help=text)
    @click.argument("name", metavar="RUN")
    @common_elsewhere
    def command(*, root: Path, name: str, as_json: bool) -> ExitCode:
        from services.cli.steering import steer

        return steer(root, wish, name, as_json=as_json)

    return command


_STEERING = (
    _steering(
        "pause",
        "Pause RUN: it ends the batches in flight, then rests until `resume`, also over restarts.",
    ),
    _steering("resume", "Put the paused RUN back in the queue."),
    _steering("cancel", "Stop RUN for good; what it committed stays."),
    _steering("retry", "Queue a run over what is left of RUN: what failed, timed out or waits."),
)


@click.command()
@click.argument("name", metavar="RUN")
@click.option("--files", is_flag=True, help="List what became of each file that it looked into.")
@common_elsewhere
def report(*, root: Path, name: str, files: bool, as_json: bool) -> ExitCode:
    """Report RUN: where the time went, what failed and why, what was reused."""
    from services.cli.run_report import show_report

    return show_report(root, name, files=files, as_json=as_json)


@click.command()
@click.argument("name", metavar="[RUN]", default="")
@click.option("--workspace", default="", help="Without RUN: the newest run of this workspace.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Read files of spans of this folder. Default: where the services write theirs.",
)
@click.option("--all", "unmerged", is_flag=True, help="List each step of the path by itself.")
@common_elsewhere
def trace(**options: Any) -> ExitCode:
    """Draw the critical path of RUN: what its end waited for, and how long.

    RUN is the name of a run, its id or the beginning of that; without it, the newest run. It may
    also be the id of a trace, as logs tell it.
    """
    from services.cli.trace.command import TraceOptions, run_trace

    return run_trace(TraceOptions(**options))


@click.command()
@click.option("--workspace", required=True, help="The workspace.")
@click.option(
    "--sample",
    type=Quantity(0, 1),
    default=0.0,
    show_default=True,
    help="Share of vectors and terms to compute again and compare.",
)
@click.option("--mark", is_flag=True, help="Mark what disagrees for a repair run.")
@click.option("--repair", is_flag=True, help="Mark it, and queue a run that redoes that alone.")
@common_elsewhere
def check(
    *, root: Path, workspace: str, sample: float, mark: bool, repair: bool, as_json: bool
) -> ExitCode:
    """Hold the index to the files and to itself; fails when something disagrees."""
    from services.cli.check import CheckOptions, run_check

    return run_check(CheckOptions(root, workspace, sample, mark or repair, repair, as_json))


@click.group()
def queue() -> None:
    """Look at the queue of nodes that wait for the model, and hold it."""


@queue.command("status")
@_WORKSPACE
@common_elsewhere
def queue_status(*, root: Path, workspace: str, as_json: bool) -> ExitCode:
    """Show nodes by kind and status with the age of the oldest, workers, and unfinished runs."""
    from services.cli.queue import show_status

    return show_status(root, workspace, as_json=as_json)


@queue.command("pause")
@_WORKSPACE
@common_elsewhere
def queue_pause(*, root: Path, workspace: str, as_json: bool) -> ExitCode:
    """Let nothing be claimed until `queue resume`; what is in flight is finished."""
    from services.cli.queue import hold

    return hold(root, workspace, paused=True, as_json=as_json)


@queue.command("resume")
@_WORKSPACE
@common_elsewhere
def queue_resume(*, root: Path, workspace: str, as_json: bool) -> ExitCode:
    """Allow claims again."""
    from services.cli.queue import hold

    return hold(root, workspace, paused=False, as_json=as_json)


@queue.command("failed")
@click.option("--workspace", required=True, help="The workspace.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@common_elsewhere
def queue_failed(*, root: Path, workspace: str, limit: int, as_json: bool) -> ExitCode:
    """List nodes that failed for good, with their error."""
    from services.cli.queue import show_failed

    return show_failed(root, workspace, limit, as_json=as_json)


@queue.command("retry-failed")
@click.option("--workspace", required=True, help="The workspace.")
@common_elsewhere
def queue_retry_failed(*, root: Path, workspace: str, as_json: bool) -> ExitCode:
    """Put all failed nodes of a workspace back, and queue a run that takes them up."""
    from services.cli.queue import retry_failed

    return retry_failed(root, workspace, as_json=as_json)


@queue.command("drain")
@_WORKSPACE
@click.option(
    "--timeout",
    type=Quantity(0, 3600),
    default=60.0,
    show_default=True,
    help="Longest wait in seconds.",
)
@common_elsewhere
def queue_drain(*, root: Path, workspace: str, timeout: float, as_json: bool) -> ExitCode:
    """Wait until nothing is pending or in flight; fails when something is left."""
    from services.cli.queue import drain

    return drain(root, workspace, timeout, as_json=as_json)


RUN_COMMANDS = (*_STEERING, report, trace, check, queue)
