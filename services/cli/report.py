"""The report of a finished run: text for a person, one JSON object for a program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lodestone.indexer.v1.index_run_service_pb2 import IndexRun
from services.cli.terminal import harmless
from services.runtime.exits import ExitCode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from google.rpc.status_pb2 import Status

    from lodestone.indexer.v1.index_run_service_pb2 import Outcome

SHOWN_FAILURES = 10
_STAGE_ORDER = ("scan", "parse", "plan", "fetch", "embed", "commit")
_EXIT_CODES = {
    IndexRun.STATE_SUCCEEDED: ExitCode.OK,
    IndexRun.STATE_SUCCEEDED_WITH_WARNINGS: ExitCode.OK,
    IndexRun.STATE_CANCELLED: ExitCode.INTERRUPTED,
}
_COLOURS = {"succeeded": "green", "failed": "red", "stale": "red"}


def state_name(run: IndexRun) -> str:
    """Returns the state as a plain word, e.g. `succeeded_with_warnings`."""
    return IndexRun.State.Name(run.state).removeprefix("STATE_").lower()


def mode_name(run: IndexRun) -> str:
    """Returns the mode as a plain word, e.g. `embed_only`."""
    return IndexRun.Mode.Name(run.mode).removeprefix("MODE_").lower()


def phase_name(run: IndexRun) -> str:
    """Returns what the run does at the moment as a plain word, e.g. `embed`."""
    return IndexRun.Phase.Name(run.phase).removeprefix("PHASE_").lower()


def exit_code(run: IndexRun) -> ExitCode:
    """Returns what the command ends with."""
    return _EXIT_CODES.get(run.state, ExitCode.FAILED)


def seconds_of(run: IndexRun) -> float:
    """Returns the seconds from the start of a run to its end, or to its last change."""
    begin = run.start_time if run.HasField("start_time") else run.create_time
    end = run.end_time if run.HasField("end_time") else run.update_time
    return max(0.0, (end.ToNanoseconds() - begin.ToNanoseconds()) / 1e9)


def error_reason(error: Status) -> str:
    """Returns the documented reason of an error, e.g. `ERROR_REASON_TIMEOUT`; empty without one."""
    from google.rpc import error_details_pb2

    info = error_details_pb2.ErrorInfo()
    return next((info.reason for detail in error.details if detail.Unpack(info)), "")


def run_json(run: IndexRun) -> dict[str, Any]:
    """Returns the run as the JSON object that `index` and `run` print."""
    counts = run.progress
    return {
        "workspace": run.name.partition("/indexRuns/")[0].removeprefix("workspaces/"),
        "run": run.name,
        "state": state_name(run),
        "files": {
            "scanned": counts.files_scanned,
            "skipped": counts.files_skipped,
            "failed": counts.files_failed,
        },
        "nodes": {
            "total": counts.nodes_total,
            "embedded": counts.nodes_embedded,
            "reused": counts.nodes_reused,
            "failed": counts.nodes_failed,
            "removed": counts.nodes_removed,
        },
        "forwards": counts.forwards,
        "seconds": round(seconds_of(run), 3),
        "stage_seconds": _stage_seconds(run),
    }


def outcome_json(outcome: Outcome) -> dict[str, Any]:
    """Returns one failure as JSON."""
    return {
        "path": outcome.path,
        "name": outcome.qualified_name,
        "stage": outcome.stage,
        "reason": _reason(outcome),
        "attempts": outcome.attempts,
    }


def print_report(run: IndexRun, failures: Sequence[Outcome]) -> None:
    """Prints counts, time by stage and what failed."""
    counts = run.progress
    state = state_name(run).replace("_", " ")
    colour = _COLOURS.get(state, "yellow")
    seconds = seconds_of(run)
    click.secho(f"Run {state} in {seconds:.1f} s", fg=colour, bold=True)
    click.echo(f"  files     {counts.files_scanned:,} scanned{_skipped(run)}", nl=False)
    click.echo(f", {counts.files_failed:,} failed")
    click.echo(
        f"  nodes     {counts.nodes_total:,}: {counts.nodes_embedded:,} embedded, "
        f"{counts.nodes_reused:,} reused, {counts.nodes_failed:,} failed; "
        f"{counts.nodes_removed:,} removed"
    )
    saved = max(counts.nodes_total - counts.nodes_failed - counts.forwards, 0)
    rate = f" ({counts.forwards / seconds:,.0f}/s)" if counts.forwards and seconds else ""
    click.echo(f"  forwards  {counts.forwards:,} made{rate}, {saved:,} saved")
    stages = ", ".join(f"{name} {value:.1f} s" for name, value in _stage_seconds(run).items())
    if stages:
        click.echo(f"  stages    {stages} (they overlap)")
    if run.HasField("error") and run.error.message:
        click.secho(f"  error     {run.error.message}", fg="red")
    for warning in run.warnings:
        click.secho(f"Warning: {warning}", err=True, fg="yellow")
    print_failures(run, failures)


def print_failures(run: IndexRun, failures: Sequence[Outcome]) -> None:
    """Prints the first failures, and how to see all of them."""
    if not failures:
        return
    total = run.progress.files_failed + run.progress.nodes_failed
    click.secho(f"{total:,} failed:", fg="yellow")
    for outcome in failures[:SHOWN_FAILURES]:
        where = harmless(f"{outcome.path} {outcome.qualified_name}".rstrip())
        click.echo(f"  {where}: {_reason(outcome)} ({outcome.stage})")
    if total > SHOWN_FAILURES:
        click.echo(f"  ... all of them: lodestone run {run.name}")


def _skipped(run: IndexRun) -> str:
    counts = run.progress
    if not counts.files_skipped:
        return ", 0 skipped"
    by_reason = ", ".join(
        f"{count:,} {reason.removeprefix('SKIP_REASON_').lower().replace('_', ' ')}"
        for reason, count in sorted(counts.skipped_by_reason.items())
    )
    return f", {counts.files_skipped:,} skipped" + (f" ({by_reason})" if by_reason else "")


def _stage_seconds(run: IndexRun) -> dict[str, float]:
    durations = run.progress.stage_durations
    known = [name for name in _STAGE_ORDER if name in durations]
    names = known + sorted(set(durations) - set(known))
    return {name: round(durations[name].ToNanoseconds() / 1e9, 3) for name in names}


def _reason(outcome: Outcome) -> str:
    if not outcome.HasField("error"):
        return "timed out"
    return outcome.error.message or "no reason was given"
