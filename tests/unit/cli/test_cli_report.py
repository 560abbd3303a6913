"""The report says what the run says."""

from __future__ import annotations

import pytest

from lodestone.indexer.v1.index_run_service_pb2 import IndexRun, Outcome
from services.cli.progress import progress_line, stages_of
from services.cli.report import exit_code, print_report, run_json

_KEYS = ["workspace", "run", "state", "files", "nodes", "forwards", "seconds", "stage_seconds"]


def _run(state: IndexRun.State.ValueType = IndexRun.STATE_SUCCEEDED) -> IndexRun:
    run = IndexRun(name="workspaces/flask-1234/indexRuns/abc", state=state)
    run.start_time.FromSeconds(100)
    run.end_time.FromMilliseconds(102_500)
    counts = run.progress
    counts.files_scanned, counts.files_skipped, counts.files_failed = 10, 3, 1
    counts.skipped_by_reason.update({"SKIP_REASON_BINARY": 2, "SKIP_REASON_TOO_LARGE": 1})
    counts.nodes_total, counts.nodes_embedded, counts.nodes_reused = 100, 20, 79
    counts.nodes_failed, counts.nodes_removed, counts.forwards = 1, 4, 18
    counts.stage_durations["embed"].FromMilliseconds(1500)
    counts.stage_durations["scan"].FromMilliseconds(20)
    return run


def test_the_json_has_exactly_the_documented_keys() -> None:
    report = run_json(_run())

    assert list(report) == _KEYS
    assert report["workspace"] == "flask-1234"
    assert report["state"] == "succeeded"
    assert report["files"] == {"scanned": 10, "skipped": 3, "failed": 1}
    assert report["nodes"] == {
        "total": 100,
        "embedded": 20,
        "reused": 79,
        "failed": 1,
        "removed": 4,
    }
    assert report["forwards"] == 18
    assert report["seconds"] == 2.5
    assert report["stage_seconds"] == {"scan": 0.02, "embed": 1.5}


@pytest.mark.parametrize(
    ("state", "code"),
    [
        (IndexRun.STATE_SUCCEEDED, 0),
        (IndexRun.STATE_SUCCEEDED_WITH_WARNINGS, 0),
        (IndexRun.STATE_FAILED, 1),
        (IndexRun.STATE_STALE, 1),
        (IndexRun.STATE_CANCELLED, 130),
    ],
)
def test_each_end_has_its_exit_code(state: IndexRun.State.ValueType, code: int) -> None:
    assert exit_code(_run(state)) == code


def test_the_text_tells_forwards_made_and_saved(capsys: pytest.CaptureFixture[str]) -> None:
    failure = Outcome(path="a.py", qualified_name="f", stage="embed")
    failure.error.message = "the text has no tokens"

    print_report(_run(), [failure])

    text = capsys.readouterr().out
    assert "18 made" in text
    assert "81 saved" in text
    assert "2 binary, 1 too large" in text
    assert "a.py f: the text has no tokens (embed)" in text


def test_totals_are_unknown_until_the_scan_is_over() -> None:
    run = _run()

    assert stages_of(run)[0].total is None
    run.progress.scan_finished = True
    assert stages_of(run)[0].total == 10
    assert progress_line(run) == "scan 10/10 files, parse 0/0 files, embed 21/21 nodes"
