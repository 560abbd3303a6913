"""Prints hits: where each lies, what it is, and its code with what matches."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from lodestone.indexer.v1.search_service_pb2 import NodeHit
from services.cli.explain import print_explanation
from services.cli.terminal import harmless

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lodestone.indexer.v1.search_service_pb2 import ExplainHitResponse

_SHOWN_LINES = 20
_NOTES = {
    NodeHit.FRESHNESS_MOVED: "moved to lines {0.start_line}-{0.end_line}",
    NodeHit.FRESHNESS_CHANGED: "the file changed since",
    NodeHit.FRESHNESS_GONE: "gone",
}
_READ_NOTES = {NodeHit.FRESHNESS_UNSPECIFIED: "its text could not be read", **_NOTES}
_VERIFIED_NOTES = {
    NodeHit.FRESHNESS_UNSPECIFIED: "not verified: its file cannot be read",
    NodeHit.FRESHNESS_FRESH: "fresh",
    **_NOTES,
}


def print_hits(
    hits: Sequence[NodeHit],
    text: str = "short",
    told: Mapping[int, ExplainHitResponse] | None = None,
    *,
    verified: bool = False,
    with_workspaces: bool = False,
) -> None:
    """Prints where each hit lies, what it is, its score, why, and its code.

    Args:
        hits: best first.
        text: `short` prints the first lines of the code, `full` and `signature` all that came,
            `none` none.
        told: why, by the hit's node, where it was asked for.
        verified: whether hits were held against the live files; each then says what it is.
        with_workspaces: whether each begins with its workspace in brackets.
    """
    notes = _VERIFIED_NOTES if verified else _NOTES if text == "none" else _READ_NOTES
    if not hits:
        click.echo("Nothing was found.")
    for hit in hits:
        workspace = f"[{hit.workspace.removeprefix('workspaces/')}] " if with_workspaces else ""
        where = f"{workspace}{harmless(hit.path)}:{hit.start_line}-{hit.end_line}"
        click.secho(where, fg="cyan", nl=False)
        note = f"  ({notes[hit.freshness].format(hit)})" if hit.freshness in notes else ""
        name = f"  {harmless(hit.qualified_name)}" if hit.qualified_name else ""
        click.echo(f"{name}  {hit.kind}  {hit.score:.3f}{note}")
        if told and hit.node_id in told:
            print_explanation(told[hit.node_id])
        if text != "none":
            _print_code(hit, _SHOWN_LINES if text == "short" else None)


def places(hit: NodeHit) -> Iterator[tuple[int, int, int]]:
    """Yields where in a hit's text terms of the query stand: line from 1, columns from 0."""
    data = hit.text.encode()
    for match in hit.matches:
        line_start = data.rfind(b"\n", 0, match.start) + 1
        column = len(data[line_start : match.start].decode())
        length = len(data[match.start : match.end].decode())
        yield data.count(b"\n", 0, match.start) + 1, column, column + length


def _print_code(hit: NodeHit, most_lines: int | None) -> None:
    # At ends of lines as the index counts them: a form feed, say, is none.
    text = hit.text.removesuffix("\n")
    lines = [line.removesuffix("\r") for line in text.split("\n")] if text else []
    shown = lines[:most_lines]
    if shown and sys.stdout.isatty():
        from rich.console import Console
        from rich.syntax import Syntax

        code = Syntax(
            "\n".join(map(harmless, shown)),
            hit.language or "text",
            line_numbers=True,
            start_line=max(hit.start_line, 1),
        )
        for line, start, end in places(hit):
            if line <= len(shown):
                code.stylize_range("bold underline", (line, start), (line, end))
        Console().print(code)
    else:
        for number, text in enumerate(shown, hit.start_line):
            click.echo(f"{number:>6} {text}")
    if len(lines) > len(shown):
        click.echo(f"       ... {len(lines) - len(shown)} more lines")
    click.echo()
