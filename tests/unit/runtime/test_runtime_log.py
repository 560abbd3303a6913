"""Logs tell where an error came from and hold neither its text nor local variables."""

from __future__ import annotations

import io
import json
import logging
import sys

import pytest

from services.runtime import log
from services.runtime.telemetry import tracer
from tests.unit.runtime.sample_service import SECRET


def _fail() -> None:
    content = SECRET
    try:
        raise FileNotFoundError(2, "No such file", f"/home/user/{content}")
    except OSError as error:
        raise ValueError(content) from error


def _logged_failure(capsys: pytest.CaptureFixture[str]) -> str:
    try:
        _fail()
    except ValueError:
        log.get_logger().exception("work_failed", attempt=2)
    return capsys.readouterr().err


def test_an_error_is_told_by_types_and_places(capsys: pytest.CaptureFixture[str]) -> None:
    line = json.loads(_logged_failure(capsys))

    assert (line["event"], line["service"], line["attempt"]) == ("work_failed", "embed", 2)
    assert [cause["type"] for cause in line["error"]] == [
        "builtins.ValueError",
        "builtins.FileNotFoundError",
    ]
    assert line["error"][0]["frames"][-1].startswith("unit/runtime/test_runtime_log.py:")
    assert line["error"][0]["frames"][-1].endswith(" _fail")


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_no_format_tells_an_errors_text_or_variables(
    capsys: pytest.CaptureFixture[str], log_format: str
) -> None:
    log.configure("embed", "info", log_format)

    text = _logged_failure(capsys)

    assert "work_failed" in text
    assert "ValueError" in text
    assert SECRET not in text
    assert "/home/user" not in text


def test_what_libraries_tell_is_a_line_without_what_they_filled_in(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Red when their lines are no JSON, and when paths and content come out by them."""
    log.configure("embed", "info", "json")
    library = logging.getLogger("some.library")

    library.warning("cannot send to %s", SECRET)
    try:
        _fail()
    except ValueError:
        library.exception(f"{SECRET} was lost")

    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["event"], line["level"], line["library"]) for line in lines] == [
        ("library_told", "warning", "some.library"),
        ("library_told", "error", "some.library"),
    ]
    assert lines[0]["template"] == "cannot send to %s"
    assert lines[0]["place"].startswith("test_runtime_log:")
    assert lines[1]["error"][0]["type"] == "builtins.ValueError"
    assert SECRET not in str(lines)


@pytest.mark.usefixtures("spans")
def test_a_line_inside_a_span_carries_its_trace(capsys: pytest.CaptureFixture[str]) -> None:
    with tracer().start_as_current_span("work") as span:
        log.get_logger().info("inside")
    log.get_logger().info("outside")

    inside, outside = map(json.loads, capsys.readouterr().err.splitlines())
    assert inside["trace_id"] == format(span.get_span_context().trace_id, "032x")
    assert "trace_id" not in outside


def test_lines_below_the_level_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("embed", "warning", "json")

    log.get_logger().info("not_told")
    log.get_logger().warning("told")

    assert [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == ["told"]


def test_a_line_that_finds_no_room_is_lost_and_fails_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Red when the error is raised: a full disk then ends whatever had something to tell."""
    with io.TextIOWrapper(io.FileIO("/dev/full", "w"), write_through=True) as full:
        monkeypatch.setattr(sys, "stderr", full)

        log.get_logger().error("work_failed")
        log.get_logger().info("work_done")

        with pytest.raises(OSError, match="No space left"):
            sys.stderr.write("a line without a logger")
