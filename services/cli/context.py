"""`lodestone context`: code for the prompt of a language model."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from lodestone.indexer.v1.search_service_pb2 import BuildContextRequest, SearchNodesRequest
from services.cli.listing import connect
from services.cli.reranking import tell_reranking
from services.cli.scope import find_scope, other_workspaces
from services.cli.terminal import harmless, note
from services.runtime.exits import ExitCode

if TYPE_CHECKING:
    from pathlib import Path

    from lodestone.indexer.v1.search_service_pb2 import BuildContextResponse
    from services.cli.scope import Filters


@dataclass(frozen=True, slots=True)
class ContextOptions:
    """What the command line asks of `context`."""

    root: Path
    """Data folder."""
    query: str
    filters: Filters
    budget: int
    signatures: bool
    limit: int
    as_json: bool
    also: tuple[str, ...] = ()
    """More workspaces that are searched."""
    rerank: bool | None = None
    """Whether the hits are reranked; None is as the server is set."""


def run_context(options: ContextOptions) -> ExitCode:
    """Prints a context on standard output, and what was left out of it on standard error."""
    indexer, roots = connect(options.root)
    try:
        scope = find_scope(indexer, options.filters, roots)
        search = SearchNodesRequest(
            parent=scope.workspace,
            other_parents=other_workspaces(scope, options.also),
            query=options.query,
            page_size=options.limit,
            filter=options.filters.with_run(indexer, scope).message(scope),
            rerank=options.rerank,
        )
        found = indexer.build_context(
            BuildContextRequest(
                search=search, token_budget=options.budget, allow_signatures=options.signatures
            )
        )
    finally:
        indexer.close()
    if options.as_json:
        click.echo(json.dumps(_json(found)))
    else:
        _print(found.text)
        _tell(found)
    return ExitCode.OK


def _print(text: str) -> None:
    """Prints a context: a terminal obeys some signs that files hold, a prompt quotes all."""
    if sys.stdout.isatty():
        text = "\n".join(map(harmless, text.split("\n")))
    click.echo(text, nl=bool(text))


def _tell(found: BuildContextResponse) -> None:
    parts = [f"{len(found.pieces)} pieces, about {found.tokens:,} tokens"]
    for count, what in (
        (found.duplicates, "copies left out"),
        (found.over_budget, "without room"),
        (found.stale, "changed since they were indexed"),
    ):
        if count:
            parts.append(f"{count} {what}")
    note("; ".join(parts))
    tell_reranking(found.reranking)


def _json(found: BuildContextResponse) -> dict[str, object]:
    return {
        "text": found.text,
        "tokens": found.tokens,
        "pieces": [
            {
                "workspace": piece.workspace,
                "path": piece.path,
                "start_line": piece.start_line,
                "end_line": piece.end_line,
                "signature_only": piece.signature_only,
            }
            for piece in found.pieces
        ],
        "stale": found.stale,
        "duplicates": found.duplicates,
        "over_budget": found.over_budget,
        "index_run": found.index_run,
    }
