"""`lodestone search`: finds code and prints it, highlighted."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lodestone.indexer.v1.search_service_pb2 import NodeHit, SearchNodesRequest
from services.cli.indexer import Indexer
from services.cli.stack import Stack
from services.cli.trees import check_workspace_id, tree_path
from services.runtime.exits import ExitCode, StartError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lodestone.indexer.v1.workspace_service_pb2 import Workspace

_SHOWN_LINES = 20
_LOST = {NodeHit.FRESHNESS_CHANGED: "the file changed since", NodeHit.FRESHNESS_GONE: "gone"}


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """What the command line asks of `search`."""

    root: Path
    """Data folder."""
    query: str
    workspace: str
    path: str
    limit: int
    as_json: bool


@dataclass(frozen=True, slots=True)
class Scope:
    """What is searched."""

    workspace: str
    globs: tuple[str, ...] = ()


def run_search(options: SearchOptions) -> ExitCode:
    """Searches, prints, and returns what the command ends with."""
    state = Stack(options.root, os.environ).ensure()
    indexer = Indexer(state.processes["indexer"].address)
    try:
        scope = _scope(indexer, options, state.roots)
        hits = find(indexer, scope.workspace, options.query, options.limit, scope.globs)
    finally:
        indexer.close()
    if options.as_json:
        click.echo(json.dumps([hit_json(hit) for hit in hits]))
    else:
        print_hits(hits)
    return ExitCode.OK


def find(
    indexer: Indexer, workspace: str, query: str, limit: int, globs: Sequence[str] = ()
) -> list[NodeHit]:
    """Returns the closest nodes with their text, best first."""
    request = SearchNodesRequest(parent=workspace, query=query, page_size=limit, with_text=True)
    request.filter.paths.extend(globs)
    return indexer.search(request)


def hit_json(hit: NodeHit) -> dict[str, object]:
    """Returns a hit as JSON."""
    return {
        "path": hit.path,
        "start_line": hit.start_line,
        "end_line": hit.end_line,
        "name": hit.qualified_name,
        "kind": hit.kind,
        "score": hit.score,
        "text": hit.text,
    }


def print_hits(hits: Sequence[NodeHit]) -> None:
    """Prints where each hit lies, what it is, its score, and the first lines of its code."""
    if not hits:
        click.echo("Nothing was found.")
    for hit in hits:
        click.secho(f"{hit.path}:{hit.start_line}-{hit.end_line}", fg="cyan", nl=False)
        note = f"  ({_LOST[hit.freshness]})" if hit.freshness in _LOST else ""
        name = f"  {hit.qualified_name}" if hit.qualified_name else ""
        click.echo(f"{name}  {hit.kind}  {hit.score:.3f}{note}")
        _print_code(hit)


def _print_code(hit: NodeHit) -> None:
    lines = hit.text.splitlines()
    shown = "\n".join(lines[:_SHOWN_LINES])
    if shown and sys.stdout.isatty():
        from rich.console import Console
        from rich.syntax import Syntax

        language = hit.language or "text"
        Console().print(
            Syntax(shown, language, line_numbers=True, start_line=max(hit.start_line, 1))
        )
    else:
        for number, line in enumerate(shown.splitlines(), hit.start_line):
            click.echo(f"{number:>6} {line}")
    if len(lines) > _SHOWN_LINES:
        click.echo(f"       ... {len(lines) - _SHOWN_LINES} more lines")
    click.echo()


def _scope(indexer: Indexer, options: SearchOptions, roots: str) -> Scope:
    """Returns the workspace that was named, or the one around the path or the current folder."""
    if options.workspace:
        return Scope(f"workspaces/{check_workspace_id(options.workspace)}")
    workspaces = indexer.list_workspaces()
    if options.path:
        around = _around(workspaces, Path(options.path).resolve(), roots)
        if around is None:
            raise StartError(
                ExitCode.USAGE,
                f"{options.path} is not indexed: run `lodestone index {options.path}` first.",
            )
        return around
    around = _around(workspaces, Path.cwd(), roots)
    if around is not None:
        return Scope(around.workspace)
    if len(workspaces) == 1:
        return Scope(workspaces[0].name)
    if not workspaces:
        raise StartError(ExitCode.FAILED, "Nothing is indexed: run `lodestone index PATH` first.")
    names = ", ".join(each.name.removeprefix("workspaces/") for each in workspaces)
    raise StartError(
        ExitCode.USAGE, f"Say what to search with --workspace or --path. There are: {names}"
    )


def _around(workspaces: Sequence[Workspace], path: Path, roots: str) -> Scope | None:
    """The innermost workspace whose tree holds the path, narrowed to what lies beneath it."""
    best: tuple[int, Scope] | None = None
    for workspace in workspaces:
        tree = tree_path(workspace.tree.root, workspace.tree.directory, roots)
        if tree is None or (tree != path and tree not in path.parents):
            continue
        inner = path.relative_to(tree).as_posix()
        globs = () if inner == "." else (inner, f"{inner}/**")
        if best is None or len(tree.parts) > best[0]:
            best = (len(tree.parts), Scope(workspace.name, globs))
    return best[1] if best else None
