"""The critical path of a run: it tiles the time, and goes where the end waited."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lodestone.indexer.v1.index_run_service_pb2 import IndexRun
from services.cli.trace.critical_path import critical_path
from services.cli.trace.drawing import bar_of, draw, label_of, time_of
from services.cli.trace.report import TraceReport, trace_json
from services.cli.trace.summary import (
    Operation,
    busy_stages,
    merged,
    operation_times,
)
from services.cli.trace.tree import LOST, NO_OWNER, QUEUED, WAIT
from tests.support.trace_trees import ASKED, COMMAND, CREATE, MS, RUN_SPAN, span, tree_of

if TYPE_CHECKING:
    from services.cli.trace.spans import Span
    from services.cli.trace.tree import Tree

_WATCH = "lodestone.indexer.v1.IndexRunService/WatchIndexRun"
_READ = "lodestone.io.v1.SnippetService/ReadContents"


def _steps(tree: Tree) -> list[tuple[str, int, int]]:
    """Returns the path as names and milliseconds."""
    return [
        (segment.node.span.name, segment.start_ns // MS, segment.end_ns // MS)
        for segment in critical_path(tree.root)
    ]


@st.composite
def _any_spans(draw: st.DrawFn) -> list[Span]:
    """Spans whose parents come before them or are lost, with times that need not nest."""
    spans: list[Span] = []
    for number in range(draw(st.integers(1, 25))):
        parents = ["", "lost", *(span.span_id for span in spans)]
        parent = draw(st.sampled_from(parents)) if spans else ""
        start = draw(st.integers(0, 50))
        name = draw(st.sampled_from([RUN_SPAN, WAIT, _READ, "lodestone.indexer.batch"]))
        spans.append(
            span(
                f"s{number}",
                parent,
                name,
                start,
                start + draw(st.integers(0, 30)),
                run="r" if name == RUN_SPAN else "",
                client=draw(st.booleans()),
            )
        )
    return spans


@given(_any_spans(), st.sampled_from(["r", ""]))
def test_segments_tile_the_time_of_the_root(spans: list[Span], of_run: str) -> None:
    """Planted once: a child that still ran is walked into, and a wait that is added twice."""
    tree = tree_of(spans, run=of_run)
    path = critical_path(tree.root)

    root = tree.root
    assert all(segment.start_ns < segment.end_ns for segment in path)
    assert all(before.end_ns == after.start_ns for before, after in pairwise(path))
    assert sum(segment.duration_ns for segment in path) == root.end_ns - root.start_ns
    if path:
        assert (path[0].start_ns, path[-1].end_ns) == (root.start_ns, root.end_ns)
    for segment in path:
        assert segment.node.start_ns <= segment.start_ns <= segment.end_ns <= segment.node.end_ns


@given(_any_spans())
def test_merged_rows_and_operations_add_up_to_the_whole(spans: list[Span]) -> None:
    """Planted once: a row of each name alone, wherever it stands in the tree."""
    tree = tree_of(spans)
    path = critical_path(tree.root)
    whole = tree.root.end_ns - tree.root.start_ns

    top = merged(tree.root, path)
    rows = list(top.all_rows())
    assert top.total_ns == sum(row.own_ns for row in rows) == whole
    for row in rows:
        assert row.total_ns == row.own_ns + sum(each.total_ns for each in row.rows.values())
        assert all(0 <= cell <= 1.0001 for cell in row.cells)
    if whole:
        assert sum(sum(row.cells) for row in rows) == pytest.approx(len(top.cells))
    assert sum(each.path_ns for each in operation_times(tree, path)) == whole


def test_the_path_goes_through_what_ended_last_and_not_through_what_ran_beside() -> None:
    """Planted once: the child that began last instead of that which ended last."""
    spans = [
        span("root", "", RUN_SPAN, 0, 100, run="r"),
        span("long", "root", "lodestone.indexer.batch", 10, 60),
        span("beside", "root", "lodestone.indexer.parse", 20, 50),
        span("last", "root", "lodestone.indexer.batch", 60, 90),
    ]

    assert _steps(tree_of(spans)) == [
        (RUN_SPAN, 0, 10),
        ("lodestone.indexer.batch", 10, 60),
        ("lodestone.indexer.batch", 60, 90),
        (RUN_SPAN, 90, 100),
    ]


def test_owners_of_a_run_whose_request_is_lost_are_there_once() -> None:
    """Red when they also hang beneath what stands for the lost span."""
    owners = [
        span("first", "lost", RUN_SPAN, 10, 40, run="r"),
        span("second", "lost", RUN_SPAN, 50, 90, run="r"),
    ]

    tree = tree_of(owners)

    assert [node.span.span_id for node in tree.nodes()] == ["(run)", "first", "second", ""]
    assert (tree.owners, tree.missing) == (2, 1)


def test_the_work_on_a_run_is_beneath_who_asked_though_the_call_was_answered_before() -> None:
    """Planted once: the run is cut to the time of the call that made it; a watch is on the path."""
    spans = [
        COMMAND,
        ASKED,
        span("watch", "cli", _WATCH, 12, 98),
        span("run", "create", RUN_SPAN, 20, 90, run="r"),
    ]

    tree = tree_of(spans)

    assert (tree.missing, tree.caller_known) == (0, True)
    assert len(list(tree.nodes())) == len(["command", "call", "queued", "run"])
    assert _steps(tree) == [
        ("lodestone.cli.index", 0, 5),
        (CREATE, 5, 10),
        (QUEUED, 10, 20),
        (RUN_SPAN, 20, 90),
        ("lodestone.cli.index", 90, 100),
    ]


def test_a_run_goes_on_in_its_trace_after_its_caller_has_gone() -> None:
    """Two owners: paused between them; the caller's own span is of another machine."""
    spans = [
        span("create", "elsewhere", CREATE, 0, 10),
        span("one", "create", RUN_SPAN, 12, 50, run="r"),
        span("two", "create", RUN_SPAN, 80, 120, run="r"),
    ]

    tree = tree_of(spans, ended=2)

    assert (tree.owners, tree.missing, tree.caller_known) == (2, 0, False)
    assert _steps(tree) == [
        (CREATE, 0, 10),
        (QUEUED, 10, 12),
        (RUN_SPAN, 12, 50),
        (NO_OWNER, 50, 80),
        (RUN_SPAN, 80, 120),
    ]


def test_what_a_killed_owner_did_stays_and_its_own_span_is_missing() -> None:
    """Planted once: a stand-in for each lost span, with nobody at work between them."""
    spans = [
        COMMAND,
        ASKED,
        span("batch", "killed", "lodestone.indexer.batch", 20, 30),
        span("embed", "lost", "lodestone.embed.v1.EmbedService/Embed", 32, 40, service="embed"),
        span("two", "create", RUN_SPAN, 60, 90, run="r"),
        span("fetch", "lost batch", "lodestone.indexer.fetch", 70, 80),
    ]

    tree = tree_of(spans, ended=2)

    assert tree.missing == 3
    assert _steps(tree)[3:] == [
        ("lodestone.indexer.batch", 20, 30),
        (LOST, 30, 32),
        ("lodestone.embed.v1.EmbedService/Embed", 32, 40),
        (NO_OWNER, 40, 60),
        (RUN_SPAN, 60, 70),
        ("lodestone.indexer.fetch", 70, 80),
        (RUN_SPAN, 80, 90),
        ("lodestone.cli.index", 90, 100),
    ]


def test_a_run_that_goes_on_hangs_at_the_call_that_asked_for_it() -> None:
    """The spans of the command, of the run and of a batch are still open.

    Planted once: the earliest span for the root.
    """
    spans = [
        span("before", "cli", "lodestone.indexer.v1.WorkspaceService/CreateWorkspace", 1, 4),
        ASKED,
        span("fetch", "batch", "lodestone.indexer.fetch", 20, 40),
    ]

    tree = tree_of(spans)

    assert (tree.owners, tree.caller_known) == (0, False)
    assert _steps(tree) == [
        (CREATE, 5, 10),
        (QUEUED, 10, 20),
        ("lodestone.indexer.fetch", 20, 40),
    ]


def test_owners_and_calls_of_which_no_span_is_left_are_counted() -> None:
    """Planted once: calls that failed count, as they never came to the other side."""
    spans = [
        COMMAND,
        ASKED,
        span("run", "create", RUN_SPAN, 20, 90, run="r"),
        span("read", "run", _READ, 30, 40, client=True),
        span("answered", "run", _READ, 40, 50, client=True),
        span("answer", "answered", _READ, 41, 49, service="io"),
        replace(span("refused", "run", _READ, 50, 51, client=True), failed=True),
    ]

    assert tree_of(spans, ended=1).missing == 1
    assert tree_of(spans, ended=3).missing == 3


def test_a_run_that_nobody_asked_for_has_a_trace_for_each_owner() -> None:
    spans = [
        span("one", "", RUN_SPAN, 0, 40, run="r", trace="a"),
        span("two", "", RUN_SPAN, 50, 90, run="r", trace="b"),
    ]

    assert _steps(tree_of(spans)) == [(RUN_SPAN, 0, 40), (NO_OWNER, 40, 50), (RUN_SPAN, 50, 90)]


def test_other_runs_of_the_trace_are_left_out() -> None:
    spans = [
        COMMAND,
        ASKED,
        span("mine", "create", RUN_SPAN, 20, 50, run="r"),
        span("other", "create", RUN_SPAN, 50, 95, run="other"),
        span("batch", "other", "lodestone.indexer.batch", 60, 90),
    ]

    names = [name for name, _, _ in _steps(tree_of(spans))]
    assert names.count(RUN_SPAN) == 1
    assert "lodestone.indexer.batch" not in names


def test_a_forward_is_beneath_the_waits_that_it_served() -> None:
    """Planted once: the forward counted once for each of them."""
    spans = [
        COMMAND,
        ASKED,
        span("run", "create", RUN_SPAN, 10, 90, run="r"),
        span("first", "run", WAIT, 20, 60, service="embed"),
        span("second", "run", WAIT, 30, 70, service="embed"),
    ]
    forward = span(
        "f", "", "lodestone.embed.forward", 40, 60, service="embed", links=("first", "second", "x")
    )

    tree = tree_of(spans, [forward])
    path = critical_path(tree.root)

    assert ("lodestone.embed.forward", 40, 60) in _steps(tree)
    assert {each.stage: each.busy_ns // MS for each in busy_stages(tree)} == {
        "wait": 50,
        "forward": 20,
    }
    (found,) = (
        each for each in operation_times(tree, path) if each.operation.name.endswith("forward")
    )
    assert (found.spans, found.p50_ns, found.max_ns) == (1, 20 * MS, 20 * MS)


def test_the_same_work_again_and_again_is_one_row() -> None:
    spans = [COMMAND, ASKED, span("run", "create", RUN_SPAN, 10, 90, run="r")]
    for number in range(8):
        start = 10 + 10 * number
        batch = f"b{number}"
        spans += [
            span(batch, "run", "lodestone.indexer.batch", start, start + 10, nodes=5),
            span(f"f{number}", batch, "lodestone.indexer.fetch", start, start + 4),
        ]

    tree = tree_of(spans)
    report = TraceReport("t", IndexRun(name="r"), tree, critical_path(tree.root))
    told = trace_json(report, with_segments=True)

    rows = {row["name"]: row for row in told["path"]}
    assert rows["lodestone.indexer.batch"]["spans"] == 8
    assert rows["lodestone.indexer.batch"]["seconds"] == 0.08
    assert rows["lodestone.indexer.batch"]["own_seconds"] == 0.048
    assert rows["lodestone.indexer.batch"]["counts"] == {"nodes": 40}
    assert rows["lodestone.indexer.fetch"]["seconds"] == 0.032
    assert sum(row["own_seconds"] for row in told["path"]) == pytest.approx(told["seconds"])
    assert sum(step["seconds"] for step in told["segments"]) == pytest.approx(told["seconds"])


@pytest.mark.parametrize(("columns", "unmerged"), [(60, ""), (200, ""), (100, "--all")])
def test_the_drawing_keeps_to_the_width_and_has_no_colour_in_a_file(
    columns: int,
    unmerged: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Planted once: numbers that are cut instead of names."""
    monkeypatch.setenv("COLUMNS", str(columns))
    spans = [COMMAND, ASKED, span("run", "create", RUN_SPAN, 20, 90, run="r", nodes=1234)]
    spans.append(span("batch", "run", "lodestone.indexer.batch" + "_named_long" * 9, 20, 21))
    spans.append(span("other", "create", RUN_SPAN, 91, 92, run="r"))
    tree = tree_of(spans, ended=3)
    run = IndexRun(name="workspaces/w/indexRuns/r", state=IndexRun.STATE_CANCELLED)

    draw(TraceReport("t" * 32, run, tree, critical_path(tree.root)), unmerged=bool(unmerged))

    text = capsys.readouterr().out
    told = " ".join(text.split())
    assert "\x1b" not in text
    share = "69.0%" if unmerged else "70.0%"
    for part in ("Run cancelled", "2 owners", "100.0 ms", share, "1 span is missing", "t" * 32):
        assert part in told
    assert max(map(len, text.splitlines())) <= columns


def test_names_are_short_and_times_are_read_at_once() -> None:
    assert label_of(Operation("cli", "lodestone.cli.index")) == "lodestone index"
    assert label_of(Operation("indexer", "lodestone.indexer.fetch")) == "fetch"
    assert label_of(Operation("io", _READ)) == "SnippetService/ReadContents"
    assert label_of(Operation("indexer", _READ, is_client=True)) == (
        "call SnippetService/ReadContents"
    )
    assert [time_of(each) for each in (0, 1_234_567, 2_340 * MS, 1_234_500 * MS)] == [
        "0.0 ms",
        "1.2 ms",
        "2.34 s",
        "1,234.5 s",
    ]
    assert bar_of([0, 0, 1, 1, 0.5, 0.5, 0.01, 0], 4, " -#") == " #--"
