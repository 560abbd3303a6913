"""`lodestone models` and what it does to them; each loads what it needs when it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from services.cli.options import common

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    from services.runtime.exits import ExitCode

_WORKSPACE = click.option("--workspace", required=True, help="The workspace.")
_FINGERPRINT = click.option(
    "--fingerprint", default="", help="Its first characters, where two models have one name."
)


@click.group(invoke_without_command=True)
@click.option("--workspace", default="", help="This workspace alone. Default: all.")
@click.option(
    "--compare", is_flag=True, help="Ask each model questions that the index itself answers."
)
@click.option(
    "--questions",
    type=click.IntRange(1, 2000),
    default=200,
    show_default=True,
    help="Most questions of a comparison.",
)
@common
@click.pass_context
def models(context: click.Context, /, **options: Any) -> ExitCode | None:
    """List the models of workspaces with how far each is, or compare them."""
    if context.invoked_subcommand is not None:
        return None
    from services.cli.workspace_models import ModelsOptions, show_models

    return show_models(ModelsOptions(**options))


def _command(name: str) -> Callable[[Callable[..., Any]], click.Command]:
    """Returns what makes a command over one model of one workspace."""

    def make(function: Callable[..., Any]) -> click.Command:
        argument = click.argument("model")
        return models.command(name)(argument(_WORKSPACE(common(function))))

    return make


@_command("add")
def add(*, root: Path, workspace: str, model: str, as_json: bool) -> ExitCode:
    """Embed a workspace with MODEL, which embed serves, in the background beside the active one."""
    from services.cli.workspace_models import add_model

    return add_model(root, workspace, model, as_json=as_json)


@_command("activate")
@_FINGERPRINT
@click.option("--force", is_flag=True, help="Even if search loses nodes until they are embedded.")
def activate(
    *, root: Path, workspace: str, model: str, fingerprint: str, force: bool, as_json: bool
) -> ExitCode:
    """Switch search over to MODEL, at once; the model until now stays beside it."""
    from services.cli.workspace_models import activate_model

    return activate_model(root, workspace, model, fingerprint, force=force, as_json=as_json)


@_command("remove")
@_FINGERPRINT
def remove(*, root: Path, workspace: str, model: str, fingerprint: str, as_json: bool) -> ExitCode:
    """Drop the vectors of MODEL, which search does not use."""
    from services.cli.workspace_models import remove_model

    return remove_model(root, workspace, model, fingerprint, as_json=as_json)
