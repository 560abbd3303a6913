"""The commands and their options; each loads what it needs when it runs."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import click

from services.cli.model_commands import models
from services.cli.options import common, common_elsewhere
from services.cli.run_commands import RUN_COMMANDS
from services.cli.search_commands import SEARCH_COMMANDS
from services.cli.tokens import token

if TYPE_CHECKING:
    from pathlib import Path

    from services.runtime.exits import ExitCode


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="lodestone", message="%(version)s")
def cli() -> None:
    """Keep a searchable vector index of source code true to the files.

    Three services and a PostgreSQL run on this machine; `index` starts them when they do not run.
    Settings are LODESTONE_* environment variables. One that is set to another value than the
    running service has restarts that service; one that is not set leaves it as it is.
    """


@cli.command()
@common
def up(*, root: Path, as_json: bool) -> ExitCode:
    """Start PostgreSQL and the services, and wait until they serve."""
    from services.cli.stack import Stack
    from services.cli.status import show_status

    Stack(root, os.environ).ensure()
    return show_status(root, as_json=as_json)


@cli.command()
@common
def down(*, root: Path, as_json: bool) -> None:
    """Stop the services and PostgreSQL; work in flight is given back first."""
    from services.cli.stack import Stack

    stopped = Stack(root, os.environ).stop()
    if as_json:
        click.echo(json.dumps({"stopped": stopped}))
    else:
        click.echo(f"Stopped {', '.join(stopped)}." if stopped else "Nothing was running.")


@cli.command()
@common
def status(*, root: Path, as_json: bool) -> ExitCode:
    """Show what runs, the model, the workspaces and the sizes; start nothing."""
    from services.cli.status import show_status

    return show_status(root, as_json=as_json)


@cli.command()
@click.argument("path")
@click.option("--workspace", default="", help="Name of the workspace. Default: from the path.")
@click.option("--full", is_flag=True, help="Look at every file, also at those that seem unchanged.")
@click.option(
    "--exclude",
    multiple=True,
    metavar="GLOB",
    help="Leave files out in this run. Repeatable; .lodestoneignore leaves them out for good.",
)
@click.option(
    "--only", multiple=True, metavar="PATH", help="Look at these files, folders or globs alone."
)
@click.option("--model", default="", help="Model of the embed service (LODESTONE_EMBED_MODEL).")
@click.option("--first-search", is_flag=True, help="Search once at the end.")
@click.option("--query", default="", help="What the first search looks for.")
@common
def index(**options: Any) -> ExitCode:
    """Bring the index of the folder PATH up to date, and report what that took.

    Only what changed is embedded. Ctrl+C cancels; the next `index` goes on where it was.
    """
    from services.cli import caller
    from services.cli.index import IndexOptions, run_index

    with caller.command_span("lodestone.cli.index", options["root"]) as span:
        code = run_index(IndexOptions(**options))
        span.failed = bool(code)
    return code


@cli.command()
@click.argument("path")
@click.option("--workspace", default="", help="Name of the workspace. Default: from the path.")
@click.option("--keep", is_flag=True, help="Let it be watched on when this command ends.")
@common
def watch(**options: Any) -> ExitCode:
    """Bring the index of the folder PATH up to date, then index what changes as it changes.

    Prints one line for each run. Ctrl+C ends the watch; with --keep, and for a workspace that was
    live before, the services watch on. `lodestone unwatch` ends that.
    """
    from services.cli.watch import WatchOptions, run_watch

    return run_watch(WatchOptions(**options))


@cli.command()
@click.argument("path")
@click.option("--workspace", default="", help="Name of the workspace. Default: from the path.")
@common
def unwatch(**options: Any) -> ExitCode:
    """Let the folder PATH be watched no more; what is indexed stays."""
    from services.cli.watch import run_unwatch

    return run_unwatch(**options)


@cli.command()
@click.option("--workspace", default="", help="Runs of this workspace alone.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@common_elsewhere
def runs(*, root: Path, workspace: str, limit: int, as_json: bool) -> ExitCode:
    """List runs, newest first."""
    from services.cli.listing import show_runs

    return show_runs(root, workspace, limit, as_json=as_json)


@cli.command()
@click.argument("name")
@common_elsewhere
def run(*, root: Path, name: str, as_json: bool) -> ExitCode:
    """Show the run NAME: counts, stages, and everything that failed."""
    from services.cli.listing import show_run

    return show_run(root, name, as_json=as_json)


@cli.command()
@common_elsewhere
def workspaces(*, root: Path, as_json: bool) -> ExitCode:
    """List workspaces with what is indexed of each."""
    from services.cli.listing import show_workspaces

    return show_workspaces(root, as_json=as_json)


@cli.command()
@click.option("--io", default="", metavar="ADDRESS", help="Address of an io service elsewhere.")
@click.option("--embed", default="", metavar="ADDRESS", help="Of an embed service.")
@click.option("--indexer", default="", metavar="ADDRESS", help="Of an indexer.")
@click.option(
    "--database", is_flag=True, help="Check the database that LODESTONE_DATABASE_URL names."
)
@click.option(
    "--tls",
    "tls_name",
    is_flag=False,
    flag_value="lodestone-{service}",
    default="",
    metavar="[NAME]",
    help="Speak TLS to ports of this machine too, which `kubectl port-forward` opens; certificates "
    "must be for lodestone-io, lodestone-embed, lodestone-indexer, or for NAME.",
)
@common
def doctor(
    *, root: Path, io: str, embed: str, indexer: str, database: bool, tls_name: str, as_json: bool
) -> ExitCode:
    """Check what a start needs, and say what to do about what is wrong.

    With addresses it checks a deployment elsewhere: LODESTONE_TLS_CA_FILE and LODESTONE_TOKEN_FILE
    say how to reach it.
    """
    from services.cli.doctor import run_doctor
    from services.cli.doctor_deployment import Deployment

    url = os.environ.get("LODESTONE_DATABASE_URL", "") if database else ""
    if database and not url:
        raise click.UsageError("--database needs LODESTONE_DATABASE_URL.")
    if tls_name and not os.environ.get("LODESTONE_TLS_CA_FILE"):
        raise click.UsageError("--tls needs LODESTONE_TLS_CA_FILE.")
    deployment = Deployment({"io": io, "embed": embed, "indexer": indexer}, url, tls_name)
    return run_doctor(root, deployment, as_json=as_json)


for command in (*SEARCH_COMMANDS, *RUN_COMMANDS, token, models):
    cli.add_command(command)
