"""`lodestone graph`: what calls a symbol, what it calls, and what else is around it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click
import grpc

from lodestone.indexer.v1 import search_service_pb2 as search_pb2
from lodestone.indexer.v1.search_service_pb2_grpc import SearchServiceStub
from services.cli.listing import connect
from services.cli.rpc_errors import explain
from services.cli.scope import Filters, find_scope
from services.cli.terminal import harmless
from services.runtime.exits import ExitCode

if TYPE_CHECKING:
    from pathlib import Path

_CALL_SECONDS = 60.0
_EDGE, _RESOLUTION = "EDGE_KIND_", "EDGE_RESOLUTION_"

# What each flag follows: the kind of edge, and whether it leads to the symbol.
_FLAGS = {
    "callers": (search_pb2.EDGE_KIND_CALLS, True),
    "callees": (search_pb2.EDGE_KIND_CALLS, False),
    "tests": (search_pb2.EDGE_KIND_TESTS, True),
    "bases": (search_pb2.EDGE_KIND_INHERITS, False),
    "subclasses": (search_pb2.EDGE_KIND_INHERITS, True),
    "members": (search_pb2.EDGE_KIND_CONTAINS, False),
    "enclosing": (search_pb2.EDGE_KIND_CONTAINS, True),
    "imports": (search_pb2.EDGE_KIND_IMPORTS, False),
    "importers": (search_pb2.EDGE_KIND_IMPORTS, True),
}
FLAGS = tuple(_FLAGS)


@dataclass(frozen=True, slots=True)
class GraphOptions:
    """What the command line asks of `graph`."""

    root: Path
    """Data folder."""
    symbol: str
    workspace: str
    path: str
    depth: int
    limit: int
    follow: tuple[str, ...]
    """Names of `FLAGS`; none follows all edges both ways."""
    as_json: bool


def run_graph(options: GraphOptions) -> ExitCode:
    """Walks from a symbol, prints what is found, and returns what the command ends with."""
    indexer, roots = connect(options.root)
    try:
        scope = find_scope(indexer, Filters(options.workspace, options.path), roots)
        found = _walk(SearchServiceStub(indexer.channel), scope.workspace, options)
    except grpc.RpcError as error:
        raise explain(error) from None
    finally:
        indexer.close()
    if options.as_json:
        click.echo(json.dumps(_as_json(found)))
    else:
        _print(found)
    return ExitCode.OK


def _walk(
    search: SearchServiceStub, workspace: str, options: GraphOptions
) -> search_pb2.ExpandNodesResponse:
    """Returns what each flag finds, as one response."""
    together = search_pb2.ExpandNodesResponse()
    for edges, direction in _walks(options.follow):
        found = search.ExpandNodes(
            search_pb2.ExpandNodesRequest(
                parent=workspace,
                symbols=[options.symbol],
                edges=edges,
                direction=direction,
                depth=options.depth,
                page_size=options.limit,
            ),
            timeout=_CALL_SECONDS,
        )
        seen = {hit.node_id for hit in together.nodes}
        together.nodes.extend(hit for hit in found.nodes if hit.node_id not in seen)
        together.edges.extend(edge for edge in found.edges if edge not in together.edges)
        del together.starts[:]
        together.starts.extend(found.starts)
        together.truncated |= found.truncated or bool(found.next_page_token)
    return together


def _walks(
    follow: tuple[str, ...],
) -> list[tuple[list[search_pb2.EdgeKind.ValueType], search_pb2.EdgeDirection.ValueType]]:
    """Returns the walks of some flags: one for each way, as a walk goes one way or both."""
    if not follow:
        return [([], search_pb2.EDGE_DIRECTION_UNSPECIFIED)]
    ways = (
        (search_pb2.EDGE_DIRECTION_IN, [_FLAGS[flag][0] for flag in follow if _FLAGS[flag][1]]),
        (
            search_pb2.EDGE_DIRECTION_OUT,
            [_FLAGS[flag][0] for flag in follow if not _FLAGS[flag][1]],
        ),
    )
    return [(kinds, direction) for direction, kinds in ways if kinds]


def _as_json(found: search_pb2.ExpandNodesResponse) -> dict[str, object]:
    return {
        "starts": [_node_json(hit) for hit in found.starts],
        "nodes": [_node_json(hit) for hit in found.nodes],
        "edges": [
            {
                "from": edge.from_node_id,
                "to": edge.to_node_id,
                "kind": _kind(edge),
                "resolution": _resolution(edge),
                "line": edge.line,
            }
            for edge in found.edges
        ],
        "truncated": found.truncated,
    }


def _node_json(hit: search_pb2.NodeHit) -> dict[str, object]:
    return {
        "id": hit.node_id,
        "path": hit.path,
        "start_line": hit.start_line,
        "end_line": hit.end_line,
        "name": hit.qualified_name,
        "kind": hit.kind,
        "distance": round(1 / hit.score) if hit.score else 0,
    }


def _print(found: search_pb2.ExpandNodesResponse) -> None:
    """Prints each edge as a line: who, how, whom, and on which line."""
    nodes = {hit.node_id: hit for hit in [*found.starts, *found.nodes]}
    for hit in found.starts:
        click.secho(f"{harmless(hit.path)}:{hit.start_line}-{hit.end_line}", fg="cyan", nl=False)
        click.echo(f"  {harmless(hit.qualified_name)}  {hit.kind}")
    if not found.edges:
        click.echo("Nothing was found around it.")
    for edge in found.edges:
        if not {edge.from_node_id, edge.to_node_id} <= set(nodes):
            continue  # one of them is gone since
        source, target = nodes[edge.from_node_id], nodes[edge.to_node_id]
        guess = "  (one of several of this name)" if _resolution(edge) == "ambiguous" else ""
        called = _place(target, target.start_line)
        click.echo(f"  {_place(source, edge.line)} {_kind(edge)} {called}{guess}")
    if found.truncated:
        click.echo("There is more: raise --limit, or narrow what is followed.")


def _place(hit: search_pb2.NodeHit, line: int) -> str:
    return harmless(f"{hit.qualified_name or hit.kind} ({hit.path}:{line or hit.start_line})")


def _kind(edge: search_pb2.Edge) -> str:
    return search_pb2.EdgeKind.Name(edge.kind).removeprefix(_EDGE).lower()


def _resolution(edge: search_pb2.Edge) -> str:
    name = search_pb2.EdgeResolution.Name(edge.resolution).removeprefix(_RESOLUTION).lower()
    return "" if name == "unspecified" else name
