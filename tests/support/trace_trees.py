"""Spans of a run and the tree of them, as `lodestone trace` has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.cli.trace.spans import Found, Span
from services.cli.trace.tree import build_tree

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.cli.trace.tree import Tree

MS = 1_000_000
CREATE = "lodestone.indexer.v1.IndexRunService/CreateIndexRun"
RUN_SPAN = "lodestone.indexer.run"


def span(
    span_id: str,
    parent_id: str,
    name: str,
    start: int,
    end: int,
    *,
    service: str = "indexer",
    run: str = "",
    client: bool = False,
    links: tuple[str, ...] = (),
    trace: str = "t",
    nodes: int = 0,
    error: str | None = None,
    lost: int = 0,
) -> Span:
    """Returns a span; times are milliseconds."""
    attributes: dict[str, str | int | float | bool] = {}
    if run:
        attributes["lodestone.run"] = run
    if nodes:
        attributes["lodestone.nodes"] = nodes
    if lost:
        attributes["lodestone.failed"] = lost
    return Span(
        trace,
        span_id,
        parent_id,
        service,
        name,
        start * MS,
        end * MS,
        is_client=client,
        failed=error is not None,
        error=error or "",
        attributes=attributes,
        links=links,
        linked_traces=frozenset({"t"} if links else ()),
    )


def tree_of(
    spans: Sequence[Span], forwards: Sequence[Span] = (), run: str = "r", ended: int = 0
) -> Tree:
    """Returns the tree of a run, or of the trace for an empty name."""
    tree = build_tree(Found(spans, forwards), run, ended)
    assert tree is not None
    return tree


COMMAND = span("cli", "", "lodestone.cli.index", 0, 100, service="cli")
ASKED = span("create", "cli", CREATE, 5, 10)
