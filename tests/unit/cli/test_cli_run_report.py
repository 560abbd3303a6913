"""The report of a run tells where its time went and groups what failed by its reason."""

from __future__ import annotations

from google.rpc import error_details_pb2

from lodestone.indexer.v1.index_run_service_pb2 import IndexRun, Outcome
from services.cli.run_report import reason_of, report_json, stages_of


def _failed(path: str, reason: str, stage: str) -> Outcome:
    outcome = Outcome(path=path, stage=stage)
    info = error_details_pb2.ErrorInfo(reason=f"ERROR_REASON_{reason}")
    outcome.error.details.add().Pack(info)
    return outcome


def test_stages_come_with_their_share_longest_first() -> None:
    run = IndexRun()
    run.progress.stage_durations["scan"].FromMilliseconds(1000)
    run.progress.stage_durations["embed"].FromMilliseconds(3000)

    assert stages_of(run) == [("embed", 3.0, 0.75), ("scan", 1.0, 0.25)]


def test_a_run_without_stages_has_none() -> None:
    assert stages_of(IndexRun()) == []


def test_a_failure_without_a_reason_is_unknown() -> None:
    assert reason_of(Outcome(stage="parse")) == "UNKNOWN (parse)"


def test_failures_are_counted_by_reason_and_reuse_is_a_share() -> None:
    run = IndexRun(name="workspaces/tree/indexRuns/one")
    run.progress.nodes_embedded = 1
    run.progress.nodes_reused = 3
    failures = [
        _failed("a.py", "TIMEOUT", "parse"),
        _failed("b.py", "TIMEOUT", "parse"),
        _failed("c.py", "BAD_VECTOR", "embed"),
    ]

    report = report_json(run, failures)

    assert report["failures_by_reason"] == {"TIMEOUT (parse)": 2, "BAD_VECTOR (embed)": 1}
    assert report["reused_share"] == 0.75
    assert [failure["path"] for failure in report["failures"]] == ["a.py", "b.py", "c.py"]
