"""`lodestone status`: what runs, how it is, and how much room it takes; starts nothing."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import click

from services.cli.files import size_of
from services.cli.folder import find_folder
from services.cli.state import POSTGRES, SERVICES, StackState, read_state
from services.runtime.exits import ExitCode, StartError

if TYPE_CHECKING:
    from pathlib import Path

    from services.cli.folder import DataFolder


def show_status(root: Path, *, as_json: bool) -> ExitCode:
    """Prints the status; ends with UNAVAILABLE unless everything serves."""
    status = collect_status(root)
    if as_json:
        click.echo(json.dumps(status))
    else:
        _print_status(status)
    return ExitCode.OK if status["serving"] else ExitCode.UNAVAILABLE


def collect_status(root: Path) -> dict[str, Any]:
    """Returns the status as JSON."""
    from services.cli.models import default_model, list_models

    folder = find_folder(root)
    state = read_state(folder.state) if folder else StackState()
    processes = _processes(state)
    embed = processes["embed"]
    models = list_models(embed["address"]) if embed["health"] == "serving" else []
    return {
        "data_dir": str(root),
        "exists": folder is not None,
        "serving": all(each["health"] == "serving" for each in processes.values()),
        "processes": processes,
        "model": default_model(models),
        "models": models,
        "workspaces": _workspaces(state) if processes["indexer"]["health"] == "serving" else [],
        "bytes": _sizes(folder) if folder else {},
    }


def _processes(state: StackState) -> dict[str, dict[str, Any]]:
    from services.cli.health import is_serving

    found: dict[str, dict[str, Any]] = {}
    for name in state.needed:
        known = state.processes.get(name)
        health = "stopped"
        if known is not None and state.runs(name):
            serving = name == POSTGRES or is_serving(known.address)
            health = "serving" if serving else "not serving"
        running = known is not None and health != "stopped"
        found[name] = {
            "health": health,
            "pid": known.process.pid if known and running else None,
            "address": known.address if known and running else None,
        }
    return found


def _workspaces(state: StackState) -> list[dict[str, object]]:
    from services.cli.indexer import Indexer
    from services.cli.listing import workspace_json

    indexer = Indexer(state.processes["indexer"].address)
    with contextlib.closing(indexer):
        try:
            return [workspace_json(each, state.roots) for each in indexer.list_workspaces()]
        except StartError:
            return []


def _sizes(folder: DataFolder) -> dict[str, int]:
    parts = {"postgres": folder.postgres, "models": folder.models, "logs": folder.logs}
    return {name: size_of(path) for name, path in parts.items()}


def _print_status(status: dict[str, Any]) -> None:
    from services.cli.listing import print_table
    from services.cli.models import print_models

    click.echo(f"Data folder  {status['data_dir']}{'' if status['exists'] else ' (not made yet)'}")
    if status["bytes"]:
        sizes = ", ".join(f"{name} {size / 1e6:,.1f} MB" for name, size in status["bytes"].items())
        click.echo(f"Sizes        {sizes}")
    names = (*SERVICES, POSTGRES)
    rows = [
        (name, each["health"], str(each["pid"] or ""), each["address"] or "")
        for name, each in status["processes"].items()
        if name in names
    ]
    print_table(("process", "health", "pid", "address"), rows)
    if status["models"]:
        print_models(status["models"])
    for workspace in status["workspaces"]:
        click.echo(f"Workspace    {workspace['workspace']}  {workspace['path']}")
        if workspace["watch"]:
            click.echo(f"             {_watch_line(workspace['watch'])}")
    if not status["serving"]:
        click.echo("Start with: lodestone up")


def _watch_line(watch: dict[str, Any]) -> str:
    parts = [f"live, {watch['state'].replace('_', ' ')}"]
    if watch["freshness_seconds"] is not None:
        parts.append(
            f"last change searched after {watch['freshness_seconds']:.2f} s ({watch['fresh_at']})"
        )
    if watch["reconciled_at"]:
        parts.append(f"whole tree looked through {watch['reconciled_at']}")
    return "; ".join(parts)
