"""Spans that are nested deeper than Python nests calls, as a loop of services may write them."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from services.cli.trace.critical_path import critical_path
from services.cli.trace.drawing import draw
from services.cli.trace.report import TraceReport, trace_json
from tests.support.trace_trees import MS, RUN_SPAN, span, tree_of

if TYPE_CHECKING:
    from services.cli.trace.spans import Span

_BATCH = "lodestone.indexer.batch"
_DEPTH = 2000


def _nested(*, top: str) -> list[Span]:
    """Each within the one before it; the lowest failed."""
    whole = 2 * _DEPTH + 1
    return [
        span(
            f"s{depth}",
            f"s{depth - 1}" if depth else top,
            _BATCH if depth else RUN_SPAN,
            depth,
            whole - depth,
            run="" if depth else "r",
            error="ERROR_REASON_INTERNAL" if depth == _DEPTH - 1 else None,
        )
        for depth in range(_DEPTH)
    ]


@pytest.mark.parametrize("run", ["r", ""])
def test_a_path_is_as_deep_as_its_spans(run: str) -> None:
    """A RecursionError when a tree is made, cut, walked or merged by calls in calls."""
    tree = tree_of(_nested(top=""), run=run)
    path = critical_path(tree.root)

    assert [node.span.span_id for node in tree.nodes()] == [f"s{each}" for each in range(_DEPTH)]
    assert len(path) == 2 * _DEPTH - 1
    assert all(before.end_ns == after.start_ns for before, after in pairwise(path))
    assert sum(segment.duration_ns for segment in path) == (2 * _DEPTH + 1) * MS


def test_a_deep_trace_is_drawn_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Also beneath a span that is lost. Red when a failure's line names all that is around it."""
    tree = tree_of([span("whole", "", RUN_SPAN, 0, 1, run="r"), *_nested(top="lost")[1:]])
    report = TraceReport("t", None, tree, critical_path(tree.root))

    told = json.loads(json.dumps(trace_json(report, with_segments=True)))
    draw(report, unmerged=False)

    assert max(row["depth"] for row in told["path"]) >= _DEPTH - 1
    drawn = capsys.readouterr().out
    assert "Critical path" in drawn
    assert "more) > batch" in drawn
