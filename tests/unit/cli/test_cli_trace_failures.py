"""A trace tells where a run failed and why, in a file as well as in a terminal."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from google.rpc.error_details_pb2 import ErrorInfo

from lodestone.indexer.v1.index_run_service_pb2 import IndexRun
from services.cli.trace.critical_path import critical_path
from services.cli.trace.drawing import draw
from services.cli.trace.report import TraceReport
from services.cli.trace.summary import failures
from tests.support.trace_trees import ASKED, COMMAND, RUN_SPAN, span, tree_of

if TYPE_CHECKING:
    from services.cli.trace.spans import Span

_EMBED_CALL = "lodestone.embed.v1.EmbedService/Embed"


def _failed_spans() -> list[Span]:
    """Two batches beside each other: one loses nodes, the other meets a service that is away."""
    batch, embed, call = "lodestone.indexer.batch", "lodestone.indexer.embed", _EMBED_CALL
    return [
        replace(COMMAND, failed=True),
        ASKED,
        span("run", "create", RUN_SPAN, 10, 90, run="r", error="ERROR_REASON_AWAY"),
        span("b1", "run", batch, 10, 30, nodes=8),
        span("e1", "b1", embed, 11, 29, error="ERROR_REASON_TIMEOUT", lost=2),
        span("c1", "e1", call, 12, 20, client=True, error="DEADLINE_EXCEEDED"),
        span("c2", "e1", call, 20, 28, client=True, error="DEADLINE_EXCEEDED"),
        span("b2", "run", batch, 10, 90, nodes=8, error="ERROR_REASON_AWAY"),
        span("e2", "b2", embed, 40, 90, error="ERROR_REASON_AWAY"),
        span("c3", "e2", call, 41, 89, client=True, error="UNAVAILABLE"),
        span("b3", "run", batch, 10, 90, nodes=8),
        span("c4", "b3", call, 41, 90, client=True, error="CANCELLED"),
    ]


def test_failures_are_told_where_they_were_and_not_where_they_went_up() -> None:
    """Red with each span that has an error, with cancelled calls, with those of the path alone."""
    tree = tree_of(_failed_spans())

    told = [
        (each.within[-1].name, each.operation.name, each.error, each.spans, each.items)
        for each in failures(tree)
    ]
    batch, embed = "lodestone.indexer.batch", "lodestone.indexer.embed"
    assert told == [
        (embed, _EMBED_CALL, "DEADLINE_EXCEEDED", 2, 0),
        (batch, embed, "ERROR_REASON_TIMEOUT", 1, 2),
        (embed, _EMBED_CALL, "UNAVAILABLE", 1, 0),
    ]


@pytest.mark.parametrize("columns", [60, 120])
def test_the_drawing_tells_failures_without_colours(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Red without the sign before what failed, and without the run's error."""
    monkeypatch.setenv("COLUMNS", str(columns))
    tree = tree_of(_failed_spans())
    run = IndexRun(name="workspaces/w/indexRuns/r", state=IndexRun.STATE_FAILED)
    run.error.message = "The embed service is away."
    run.error.details.add().Pack(ErrorInfo(reason="ERROR_REASON_AWAY"))

    draw(TraceReport("t" * 32, run, tree, critical_path(tree.root)), unmerged=False)

    lines = capsys.readouterr().out.splitlines()
    text = " ".join(" ".join(lines).split())
    assert max(map(len, lines)) <= columns
    assert "Error AWAY: The embed service is away." in text
    chain = "indexer run > batch > embed"
    assert f"29.0 ms {chain}: TIMEOUT (2 failed)" in text
    assert f"20.0 ms {chain} > call EmbedService/Embed: DEADLINE_EXCEEDED (2 spans" in text
    assert f"89.0 ms {chain} > call EmbedService/Embed: UNAVAILABLE" in text
    assert "indexer ! run" in text
    assert "cli ! lodestone index" in text
