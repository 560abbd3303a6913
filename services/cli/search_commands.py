"""The commands that ask the index; each loads what it needs when it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from services.cli.options import common_elsewhere, data_folder, given_once, not_blank

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.cli.search import SearchOptions
    from services.runtime.exits import ExitCode

_KINDS = ("module", "class", "function", "method", "block", "section", "window")


def _once(name: str, text: str, metavar: str | None = None) -> Callable[..., Any]:
    """An option that is given once at most."""
    return click.option(name, multiple=True, callback=given_once, metavar=metavar, help=text)


def _filters(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that say what is searched."""
    options = (
        _once("--workspace", "Default: the one around this folder."),
        _once("--path", "Search what lies beneath this folder or file."),
        click.option(
            "--glob",
            "globs",
            multiple=True,
            help="Paths beneath it to search, e.g. '*.py', 'a/**', '/top.py', 'a\\*star.py'.",
        ),
        click.option("--lang", "languages", multiple=True, help="Language, e.g. python."),
        click.option("--kind", "kinds", multiple=True, type=click.Choice(_KINDS)),
        click.option("--symbol", "symbols", multiple=True, help="Qualified name, e.g. Router.add."),
        _once(
            "--changed-since",
            "Only what this run (its name or id) or a later one put into the index as it is.",
            metavar="RUN",
        ),
        click.option(
            "--rerank/--no-rerank",
            default=None,
            help="Have the first hits scored by the reranker. Default: as the indexer is set.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def _also(effect: str) -> Callable[..., Any]:
    """The option that names more workspaces."""
    return click.option(
        "--also",
        multiple=True,
        metavar="WORKSPACE",
        help=f"One more workspace to search, indexed by the same model; {effect}",
    )


@click.command()
@click.argument("query", callback=not_blank)
@_filters
@_also("each hit then tells its own.")
@click.option(
    "-k", "--limit", type=click.IntRange(1, 1000), default=5, show_default=True, help="Most hits."
)
@click.option(
    "--text",
    type=click.Choice(("none", "signature", "short", "full")),
    default="short",
    show_default=True,
    help="How much of each hit's code is shown; a signature is what stands before a body.",
)
@click.option(
    "--verify",
    is_flag=True,
    help="Hold each hit against the live file; what moved is shown where it is now.",
)
@click.option("--explain", is_flag=True, help="Tell why each hit stands where it does.")
@click.option("--watch", is_flag=True, help="Search again whenever the index has changed.")
@common_elsewhere
def search(**options: Any) -> ExitCode:
    """Find the code that is closest to QUERY, in words or code.

    --glob, --lang, --kind and --symbol can be repeated: any of the values will do. --also can be
    repeated too: all of the workspaces are searched.
    """
    from services.cli import caller
    from services.cli.search import run_search

    wanted = search_options(options)
    if wanted.watch:  # each of its looks is a trace of its own
        return run_search(wanted)
    with caller.command_span("lodestone.cli.search", wanted.root) as span:
        code = run_search(wanted)
        span.failed = bool(code)
    return code


@click.command()
@click.argument("query", callback=not_blank)
@_filters
@click.option(
    "--budget",
    type=click.IntRange(1, 1_000_000),
    default=8000,
    show_default=True,
    help="Most tokens, by estimate.",
)
@click.option(
    "--signatures/--no-signatures",
    default=True,
    show_default=True,
    help="Give a declaration that has no room as what is before its body.",
)
@click.option(
    "-k",
    "--limit",
    type=click.IntRange(1, 1000),
    default=50,
    show_default=True,
    help="Most hits that are looked at.",
)
@_also("each piece then tells its own.")
@common_elsewhere
def context(**options: Any) -> ExitCode:
    """Print code that answers QUERY, cited, for the prompt of a language model."""
    from services.cli.context import ContextOptions, run_context

    return run_context(ContextOptions(filters=_taken(options), **options))


@click.command()
@click.argument("symbol", callback=not_blank)
@_once("--workspace", "Workspace. Default: the one around this folder.")
@_once("--path", "The workspace around this folder.")
@click.option("--callers", is_flag=True, help="What calls it.")
@click.option("--callees", is_flag=True, help="What it calls.")
@click.option("--tests", is_flag=True, help="Tests that call it.")
@click.option("--bases", is_flag=True, help="What it inherits from.")
@click.option("--subclasses", is_flag=True, help="What inherits from it.")
@click.option("--members", is_flag=True, help="What it contains.")
@click.option("--enclosing", is_flag=True, help="The class around it.")
@click.option("--imports", is_flag=True, help="What it imports.")
@click.option("--importers", is_flag=True, help="What imports it.")
@click.option("--depth", type=click.IntRange(1, 5), default=1, show_default=True)
@click.option(
    "-k", "--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="Most nodes."
)
@common_elsewhere
def graph(**options: Any) -> ExitCode:
    """Show what is around the class, function or method SYMBOL: all of it, or what is named.

    SYMBOL is a qualified name, or the end of one: `Flask.route`, `route`.
    """
    from services.cli.graph import FLAGS, GraphOptions, run_graph

    follow = tuple(flag for flag in FLAGS if options.pop(flag))
    return run_graph(GraphOptions(follow=follow, **options))


@click.command()
@click.option(
    "--path",
    default=".",
    show_default=True,
    help="Folder that tools are about when they name none.",
)
@data_folder
def mcp(**options: Any) -> ExitCode:
    """Serve an assistant over the Model Context Protocol, on standard input and output.

    It starts what does not run when a tool is first called. It ends with its input, or at Ctrl+C.
    """
    from services.cli.mcp import run_mcp

    return run_mcp(**options)


def search_options(options: dict[str, Any]) -> SearchOptions:
    """Returns what the command line asks of `search`, out of its parameters."""
    from services.cli.search import SearchOptions

    return SearchOptions(filters=_taken(options), **options)


def _taken(options: dict[str, Any]) -> Any:
    """Takes the filters out of a command's options."""
    from services.cli.scope import Filters

    names = ("workspace", "path", "globs", "languages", "kinds", "symbols", "changed_since")
    return Filters(**{name: options.pop(name) for name in names})


SEARCH_COMMANDS = (search, context, graph, mcp)
