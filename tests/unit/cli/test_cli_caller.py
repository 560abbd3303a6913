"""The span of a command: told where others are, and never what the command fails by."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

import pytest

from services.cli.__main__ import main
from services.cli.caller import command_span, command_step, trace_headers, traces_folder
from services.cli.folder import open_folder
from services.cli.trace.spans import find_spans
from services.runtime.exits import ExitCode
from services.runtime.span_files import span_files
from tests.support.collector import collecting

if TYPE_CHECKING:
    from pathlib import Path

_TRACE = "0123456789abcdef" * 2


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LODESTONE_TRACES_FOLDER", raising=False)
    monkeypatch.delenv("LODESTONE_OTLP_ENDPOINT", raising=False)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data folder."""
    return open_folder(tmp_path / "data", print).root


def _fail(root: Path, headers: list[tuple[str, str]]) -> None:
    with command_span("lodestone.cli.index", root):
        headers += trace_headers()
        with command_step("lodestone.cli.start"):
            pass
        raise ValueError("wrong")


def test_a_command_and_its_steps_are_one_trace_that_its_calls_continue(root: Path) -> None:
    """Planted once: steps without their command for a parent; one that raises told as good."""
    headers = trace_headers()
    with pytest.raises(ValueError, match="wrong"):
        _fail(root, headers)
    with command_span("lodestone.cli.search", root) as other:
        other.failed = False

    ((_, header),) = headers
    _, trace_id, span_id, _ = header.split("-")
    step, command = find_spans(root / "traces", trace_id).spans
    assert (command.name, command.span_id, command.service) == (
        "lodestone.cli.index",
        span_id,
        "cli",
    )
    assert (command.parent_id, command.failed) == ("", True)
    assert (step.name, step.parent_id) == ("lodestone.cli.start", span_id)
    assert command.start_ns <= step.start_ns <= step.end_ns <= command.end_ns
    (good,) = find_spans(root / "traces", other.trace_id).spans
    assert not good.failed
    assert trace_headers() == []


def test_nothing_is_written_where_no_data_folder_is(tmp_path: Path) -> None:
    """Planted once: a folder of the user's that gets a folder `traces`."""
    with command_span("lodestone.cli.index", tmp_path / "data"):
        pass

    assert list(tmp_path.iterdir()) == []


def test_the_users_folder_is_taken_and_an_empty_one_is_none(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert traces_folder(root) == root / "traces"
    for folder, files in (("", 0), (str(tmp_path / "mine"), 1)):
        monkeypatch.setenv("LODESTONE_TRACES_FOLDER", folder)
        with command_span("lodestone.cli.index", root):
            pass
        assert len(span_files(tmp_path / "mine")) == files
    assert not (root / "traces").exists()


def test_a_collector_gets_the_same_span(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted once: the step under an id of its own trace."""
    with collecting() as (collector, endpoint):
        monkeypatch.setenv("LODESTONE_OTLP_ENDPOINT", endpoint)
        with command_span("lodestone.cli.index", root) as span, command_step("lodestone.cli.start"):
            pass

    (path,) = collector.paths("lodestone-cli", "lodestone.cli.start")
    assert path == [
        ("lodestone-cli", "lodestone.cli.index"),
        ("lodestone-cli", "lodestone.cli.start"),
    ]
    (sent,) = collector.named("lodestone-cli", "lodestone.cli.index")
    assert (sent.span.trace_id.hex(), sent.span.span_id.hex()) == (span.trace_id, span.span_id)
    assert sent.span.end_time_unix_nano == span.end_ns


def test_a_collector_that_does_not_answer_holds_a_command_up_for_no_second(
    root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Planted once: the timeout of the services, which is three times as long."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("LODESTONE_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        with command_span("lodestone.cli.index", root):
            pass

    assert time.monotonic() - began < 1.2
    assert capfd.readouterr().err == ""


def test_a_trace_that_is_not_here_is_told_with_its_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is started to say so."""
    arguments = ["trace", _TRACE, "--data-dir", str(tmp_path / "data")]
    told = []
    monkeypatch.setenv("LODESTONE_OTLP_ENDPOINT", "http://collector:4317")
    for folder in (str(tmp_path), ""):
        monkeypatch.setenv("LODESTONE_TRACES_FOLDER", folder)
        assert main(arguments) == ExitCode.FAILED
        told.append(capsys.readouterr().err)

    assert "There are no files of spans" in told[0]
    assert "LODESTONE_TRACES_FOLDER is empty" in told[1]
    for line in told:
        assert line.count("\n") == 1
        assert f"open the trace {_TRACE} in your tracing backend" in line
        assert "http://collector:4317" in line
    assert list(tmp_path.iterdir()) == []
