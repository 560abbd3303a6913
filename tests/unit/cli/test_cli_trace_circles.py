"""Spans whose parents go round in a circle, as a broken or hostile service may write them."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cli.trace.critical_path import critical_path
from tests.support.trace_trees import ASKED, COMMAND, MS, RUN_SPAN, span, tree_of

if TYPE_CHECKING:
    from services.cli.trace.spans import Span

_BATCH = "lodestone.indexer.batch"


@st.composite
def _circling(draw: st.DrawFn) -> list[Span]:
    """Spans each of which may have any for its parent, itself too."""
    count = draw(st.integers(1, 12))
    parents = ["", "lost", *(f"s{number}" for number in range(count))]
    return [
        span(
            f"s{number}",
            draw(st.sampled_from(parents)),
            draw(st.sampled_from([RUN_SPAN, _BATCH])),
            (start := draw(st.integers(0, 50))),
            start + draw(st.integers(0, 30)),
            run=draw(st.sampled_from(["", "r", "other"])),
        )
        for number in range(count)
    ] + [span("whole", "", RUN_SPAN, 0, 100, run="r")]


@given(_circling(), st.sampled_from(["r", ""]))
def test_a_tree_is_made_of_any_spans(spans: list[Span], run: str) -> None:
    """Without end when a circle is followed."""
    tree = tree_of(spans, run=run)
    path = critical_path(tree.root)

    ids = [node.span.span_id for node in tree.nodes() if node.span.span_id]
    assert len(ids) == len(set(ids))
    assert sum(segment.duration_ns for segment in path) == tree.root.end_ns - tree.root.start_ns
    assert all(before.end_ns == after.start_ns for before, after in pairwise(path))


@pytest.mark.parametrize("run", ["r", ""])
@pytest.mark.parametrize("parents", [("b", "a"), ("a", "a")])
def test_a_circle_is_cut_above_what_began_first(parents: tuple[str, str], run: str) -> None:
    """Without end when a circle is followed; red when it is cut at another place."""
    first = span("a", parents[0], RUN_SPAN, 0, 10, run="r")
    later = span("b", parents[1], _BATCH, 1, 9)

    for spans in ([first, later], [later, first]):
        tree = tree_of(spans, run=run)
        assert [node.span.span_id for node in tree.nodes()] == ["a", "b"]


def test_a_circle_beside_a_run_changes_nothing_of_it() -> None:
    well = [COMMAND, ASKED, span("owner", "create", RUN_SPAN, 10, 90, run="r")]
    circle = [span("a", "b", _BATCH, 20, 30), span("b", "a", _BATCH, 21, 29)]

    tree, alone = tree_of(well + circle), tree_of(well)

    assert [node.span for node in tree.nodes()] == [node.span for node in alone.nodes()]
    assert tree.missing == alone.missing
    assert tree.root.end_ns == 100 * MS
