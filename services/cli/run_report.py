"""`lodestone report`: where a run's time went, what failed and why, what was reused."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from lodestone.indexer.v1.index_run_service_pb2 import Outcome
from services.cli.listing import connect, find_run, print_table
from services.cli.report import (
    error_reason,
    mode_name,
    outcome_json,
    print_report,
    run_json,
    seconds_of,
)
from services.cli.terminal import harmless
from services.runtime.exits import ExitCode

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lodestone.indexer.v1.index_run_service_pb2 import IndexRun

_MOST_OUTCOMES = 1_000_000
_FAILED = (Outcome.RESULT_FAILED, Outcome.RESULT_TIMEOUT, Outcome.RESULT_STALE)
_SHOWN_EXAMPLES = 3


def show_report(root: Path, name: str, *, files: bool, as_json: bool) -> ExitCode:
    """Prints a run's report, with what became of each file where that is asked for.

    Raises:
        StartError: no run has this name, or several begin with these characters.
    """
    indexer, _ = connect(root)
    run = find_run(indexer, name)
    outcomes = indexer.outcomes(run.name, _MOST_OUTCOMES)
    failures = [outcome for outcome in outcomes if _failed(outcome)]
    entries = [file_json(outcome) for outcome in outcomes if outcome.entity == Outcome.ENTITY_FILE]
    by_result = dict(Counter(entry["result"] for entry in entries))
    if as_json:
        shown = {**report_json(run, failures), "files_by_result": by_result}
        if files:
            shown["outcomes"] = entries
        click.echo(json.dumps(shown))
        return ExitCode.OK
    click.secho(run.name, bold=True)
    print_report(run, [])
    _print_stages(run)
    looked = ", ".join(f"{count:,} {result}" for result, count in sorted(by_result.items()))
    click.echo(f"Files that it looked into: {looked or 'none'}")
    if files:
        _print_files(entries)
    _print_failures(failures)
    return ExitCode.OK


def file_json(outcome: Outcome) -> dict[str, Any]:
    """Returns what became of a file as JSON."""
    return {
        "path": outcome.path,
        "result": Outcome.Result.Name(outcome.result).removeprefix("RESULT_").lower(),
        "stage": outcome.stage,
        "attempts": outcome.attempts,
        "seconds": round(outcome.duration.ToNanoseconds() / 1e9, 4),
        "nodes": {
            "embedded": outcome.nodes_embedded,
            "reused": outcome.nodes_reused,
            "failed": outcome.nodes_failed,
            "pending": outcome.nodes_pending,
        },
    }


def report_json(run: IndexRun, failures: Sequence[Outcome]) -> dict[str, Any]:
    """Returns the report as one JSON object."""
    counts = run.progress
    covered = counts.nodes_embedded + counts.nodes_reused
    return {
        **run_json(run),
        "mode": mode_name(run),
        "stages": {name: {"seconds": s, "share": share} for name, s, share in stages_of(run)},
        "reused_share": round(counts.nodes_reused / covered, 4) if covered else 0.0,
        "tokens": counts.tokens,
        "retry_of": run.retry_of,
        "warnings": list(run.warnings),
        "failures_by_reason": dict(Counter(map(reason_of, failures))),
        "failures": [outcome_json(outcome) for outcome in failures],
    }


def stages_of(run: IndexRun) -> list[tuple[str, float, float]]:
    """Returns stage, seconds and share of all stages' time, longest first."""
    seconds = {
        name: duration.ToNanoseconds() / 1e9
        for name, duration in run.progress.stage_durations.items()
    }
    total = sum(seconds.values()) or 1.0
    ordered = sorted(seconds.items(), key=lambda item: -item[1])
    return [(name, round(value, 3), round(value / total, 4)) for name, value in ordered]


def reason_of(outcome: Outcome) -> str:
    """Returns a failure's reason and the stage at which it came, e.g. `TIMEOUT (parse)`."""
    reason = error_reason(outcome.error) or "UNKNOWN"
    return f"{reason.removeprefix('ERROR_REASON_')} ({outcome.stage})"


def _failed(outcome: Outcome) -> bool:
    return outcome.result in _FAILED


def _print_files(entries: Sequence[dict[str, Any]]) -> None:
    header = ("file", "result", "embedded", "reused", "failed", "pending", "attempts")
    rows = [
        (
            str(entry["path"]),
            str(entry["result"]),
            *(f"{count:,}" for count in entry["nodes"].values()),
            str(entry["attempts"]),
        )
        for entry in entries
    ]
    print_table(header, rows)


def _print_stages(run: IndexRun) -> None:
    rows = [(name, f"{seconds:.2f} s", f"{share:.0%}") for name, seconds, share in stages_of(run)]
    if rows:
        click.echo(f"Time by stage; stages overlap, the run took {seconds_of(run):.1f} s:")
        print_table(("stage", "time", "share"), rows)


def _print_failures(failures: Sequence[Outcome]) -> None:
    """Prints each reason with how often it came, and some of what it hit."""
    for reason, count in Counter(map(reason_of, failures)).most_common():
        click.secho(f"{count:,} failed: {reason}", fg="yellow")
        examples = [outcome for outcome in failures if reason_of(outcome) == reason]
        for outcome in examples[:_SHOWN_EXAMPLES]:
            where = harmless(f"{outcome.path} {outcome.qualified_name}".rstrip())
            click.echo(f"  {where}: {outcome.error.message}")
        if len(examples) > _SHOWN_EXAMPLES:
            click.echo(f"  ... and {len(examples) - _SHOWN_EXAMPLES:,} more")
