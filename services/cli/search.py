"""`lodestone search`: finds code, and finds it again when the index has changed."""

from __future__ import annotations

import json
import signal
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import click

from lodestone.indexer.v1.search_service_pb2 import NodeHit, SearchNodesRequest
from services.cli.explain import explanation_json
from services.cli.hits import print_hits
from services.cli.listing import connect
from services.cli.scope import find_scope, other_workspaces
from services.cli.terminal import note
from services.runtime.exits import ExitCode, StartError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lodestone.indexer.v1.search_service_pb2 import SearchNodesResponse
    from services.cli.indexer import Indexer
    from services.cli.scope import Filters, Scope

_POLL_SECONDS = 0.5
_MOST_HITS = 1000


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """What the command line asks of `search`."""

    root: Path
    """Data folder."""
    query: str
    filters: Filters
    limit: int
    text: str
    """`none`, `signature`, `short` or `full`."""
    watch: bool
    as_json: bool
    verify: bool = False
    """Whether each hit is held against the live file."""
    explain: bool = False
    """Whether each hit comes with why it stands where it does."""
    also: tuple[str, ...] = ()
    """More workspaces that are searched."""
    rerank: bool | None = None
    """Whether the first hits are reranked; None is as the server is set."""


def run_search(options: SearchOptions) -> ExitCode:
    """Searches, prints, and returns what the command ends with."""
    indexer, roots = connect(options.root)
    try:
        scope = find_scope(indexer, options.filters, roots)
        filters = options.filters.with_run(indexer, scope)
        request = search_request(replace(options, filters=filters), scope)
        if options.watch:
            _watch(indexer, request, options)
        else:
            found = indexer.search(request)
            _show(found, options)
            if not found.hits and request.filter.languages:
                _tell_languages(indexer, request)
    finally:
        indexer.close()
    return ExitCode.OK


def search_request(options: SearchOptions, scope: Scope) -> SearchNodesRequest:
    """Returns what is asked of the indexer."""
    return SearchNodesRequest(
        parent=scope.workspace,
        other_parents=other_workspaces(scope, options.also),
        query=options.query,
        page_size=options.limit,
        with_text=options.text != "none",
        signatures=options.text == "signature",
        verify=options.verify,
        filter=options.filters.message(scope),
        rerank=options.rerank,
        explain=options.explain,
    )


def find(indexer: Indexer, workspace: str, query: str, limit: int) -> list[NodeHit]:
    """Returns the closest nodes with their text, best first."""
    request = SearchNodesRequest(parent=workspace, query=query, page_size=limit, with_text=True)
    return list(indexer.search(request).hits)


def hit_json(hit: NodeHit) -> dict[str, object]:
    """Returns a hit as JSON."""
    freshness = NodeHit.Freshness.Name(hit.freshness).removeprefix("FRESHNESS_").lower()
    return {
        "workspace": hit.workspace,
        "path": hit.path,
        "start_line": hit.start_line,
        "end_line": hit.end_line,
        "name": hit.qualified_name,
        "kind": hit.kind,
        "language": hit.language,
        "score": hit.score,
        "text": hit.text,
        "is_signature": hit.is_signature,
        "freshness": freshness,
        "matches": [[each.start, each.end] for each in hit.matches],
    }


def _show(found: SearchNodesResponse, options: SearchOptions) -> None:
    hits = found.hits
    told = {item.hit.node_id: item for item in found.explanations}
    if options.as_json:
        why = {node: {"explanation": explanation_json(item)} for node, item in told.items()}
        click.echo(json.dumps([hit_json(hit) | why.get(hit.node_id, {}) for hit in hits]))
    else:
        print_hits(
            hits,
            options.text,
            told,
            verified=options.verify,
            with_workspaces=bool(options.also),
        )


def _tell_languages(indexer: Indexer, request: SearchNodesRequest) -> None:
    """Says in which languages there are hits, as the one that is asked for may be written wrong."""
    wider = SearchNodesRequest(
        parent=request.parent,
        other_parents=request.other_parents,
        query=request.query,
        page_size=_MOST_HITS,
        filter=request.filter,
    )
    del wider.filter.languages[:]
    languages = sorted({hit.language for hit in indexer.search(wider).hits})
    if languages:
        note(f"In other languages there are hits: {', '.join(languages)}.")


def _watch(indexer: Indexer, request: SearchNodesRequest, options: SearchOptions) -> None:
    """Prints the hits, and again whenever a run has ended and they are others, until Ctrl+C.

    Raises:
        KeyboardInterrupt: at Ctrl+C.
    """
    names = [request.parent, *request.other_parents]
    shown: Sequence[NodeHit] | None = None
    runs: list[str] = []
    away = False
    interrupted = threading.Event()

    def on_interrupt(_number: int, _frame: object) -> None:
        # An exception out of a handler is lost when it comes up in a finalizer of gRPC's.
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()

    signal.signal(signal.SIGINT, on_interrupt)
    while not interrupted.is_set():
        try:
            last = [indexer.get_workspace(name).last_index_run for name in names]
            if shown is None or last != runs:
                found = indexer.search(request)
                if found.hits != shown:
                    changed = [run for run in last if run not in runs]
                    _announce(changed, options, first=shown is None)
                    _show(found, options)
                shown, runs = found.hits, last
            away = False
        except StartError as error:
            if error.code is not ExitCode.UNAVAILABLE:
                raise
            if not away:
                note(f"{error.message} Watching goes on.")
            away = True
        interrupted.wait(_POLL_SECONDS)
    raise KeyboardInterrupt


def _announce(runs: Sequence[str], options: SearchOptions, *, first: bool) -> None:
    if not first and not options.as_json:
        click.secho(f"The index has changed ({', '.join(runs)})", bold=True)
