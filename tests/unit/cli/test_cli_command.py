"""Whatever goes wrong, the command ends with one clear line and an exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from services.cli.__main__ import main
from services.cli.commands import cli
from services.cli.files import size_of
from services.cli.folder import open_folder
from services.runtime.exits import ExitCode

if TYPE_CHECKING:
    from pathlib import Path

COMMANDS = [
    *("up", "down", "status", "index", "search", "graph", "runs", "run", "workspaces", "doctor"),
    *("pause", "resume", "cancel", "retry", "report", "check", "watch", "unwatch", "context"),
    "models",
    "trace",
]
_ASK_ELSEWHERE = [
    *("search", "context", "graph", "runs", "run", "workspaces", "report", "check", "trace"),
    *("pause", "resume", "cancel", "retry"),
]
QUEUE_COMMANDS = ["status", "pause", "resume", "failed", "retry-failed", "drain"]
_HEAVY = "pydantic sqlalchemy protovalidate opentelemetry psutil asyncpg rich torch structlog mcp"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_json_and_a_data_folder(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--help"]) == 0

    text = capsys.readouterr().out
    assert "--json" in text
    assert "--data-dir" in text
    assert ("--indexer" in text) == (command in {*_ASK_ELSEWHERE, "doctor"})
    assert set(cli.commands) == {*COMMANDS, "queue", "token", "mcp"}


def test_a_reader_that_has_seen_enough_is_no_failure() -> None:
    """As with `lodestone search x | head -1`; red when the library's own exit code is taken."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "services.cli", "search", "--help"]

    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False, timeout=60)

    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("closed", "arguments", "code"),
    [
        (">&-", "--version", 0),
        ("2>&-", "index --what", 2),
        ("2>&-", "index /nowhere", 2),
        (">&- 2>&- <&-", "status", 3),
    ],
)
def test_a_stream_that_is_closed_changes_no_exit_code(
    tmp_path: Path, closed: str, arguments: str, code: int
) -> None:
    """As from cron, or a daemon; red when what is printed is flushed to no file at all."""
    command = f"exec {sys.executable} -m services.cli {arguments} {closed}"
    environment = {**os.environ, "LODESTONE_DATA_DIR": str(tmp_path / "data")}

    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, check=False, timeout=60, env=environment
    )

    assert done.returncode == code
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments", ["queue drain --timeout nan", "check --workspace any-name --sample nan"]
)
def test_a_number_that_is_none_is_refused(
    arguments: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Red when a range is left to click: a traceback comes of it."""
    assert main(arguments.split()) == ExitCode.USAGE

    assert "It is no number" in capsys.readouterr().err


@pytest.mark.parametrize("command", QUEUE_COMMANDS)
def test_every_command_of_the_queue_has_help_json_and_a_data_folder(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["queue", command, "--help"]) == 0

    text = capsys.readouterr().out
    assert "--json" in text
    assert "--data-dir" in text


@pytest.mark.parametrize("command", ["add", "activate", "remove"])
def test_every_command_of_models_has_help_json_and_a_data_folder(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", command, "--help"]) == 0

    text = capsys.readouterr().out
    assert "--json" in text
    assert "--data-dir" in text
    assert "--workspace" in text


@pytest.mark.parametrize("arguments", [["nonsense"], ["index"], ["up", "--nonsense"]])
def test_wrong_arguments_are_told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == ExitCode.USAGE
    assert "Error: " in capsys.readouterr().err


def test_a_missing_folder_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["index", str(tmp_path / "missing"), "--data-dir", str(tmp_path / "data")])

    assert code == ExitCode.USAGE
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("command", [["up"], ["down"], ["status"], ["index", "."], ["search", "x"]])
def test_a_foreign_data_folder_is_refused_by_every_command(
    tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")

    code = main([*command, "--data-dir", str(tmp_path)])

    assert code == ExitCode.DATA_FOLDER
    assert capsys.readouterr().err.count("\n") == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_unknown_setting_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LODESTONE_IO_LISTNE", "127.0.0.1:1")

    code = main(["up", "--data-dir", str(tmp_path / "data")])

    assert code == ExitCode.USAGE
    assert "LODESTONE_IO_LISTEN" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_down_and_status_of_nothing_make_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(tmp_path / "data")

    assert main(["down", "--json", "--data-dir", root]) == 0
    assert json.loads(capsys.readouterr().out) == {"stopped": []}
    assert main(["status", "--json", "--data-dir", root]) == ExitCode.UNAVAILABLE
    status = json.loads(capsys.readouterr().out)
    assert status["exists"] is False
    assert {each["health"] for each in status["processes"].values()} == {"stopped"}
    assert not (tmp_path / "data").exists()


def test_a_full_disk_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.cli.preflight.FREE_BYTES_NEEDED", 1 << 62)

    code = main(["up", "--data-dir", str(tmp_path / "data")])

    assert code == ExitCode.DISK_FULL
    assert "free some" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("value", ["soon", "0", "99999"])
def test_a_wrong_start_timeout_is_told(
    tmp_path: Path, value: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LODESTONE_START_TIMEOUT_SECONDS", value)

    code = main(["up", "--data-dir", str(tmp_path / "data")])

    assert code == ExitCode.USAGE
    assert "LODESTONE_START_TIMEOUT_SECONDS" in capsys.readouterr().err
    assert size_of(tmp_path) == 0


def test_doctor_tells_what_to_do_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LODESTONE_NONSENSE", "1")

    code = main(["doctor", "--json", "--data-dir", str(tmp_path / "data")])

    checks = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert code == ExitCode.FAILED
    assert not checks["settings"]["ok"]
    assert "LODESTONE_NONSENSE" in checks["settings"]["detail"]
    assert checks["python"]["ok"]
    assert not (tmp_path / "data").exists()


def test_a_data_folder_in_a_reused_state_is_kept(tmp_path: Path) -> None:
    folder = open_folder(tmp_path / "data", print)
    folder.state.write_text("broken")

    assert main(["down", "--data-dir", str(folder.root)]) == 0


def test_index_loads_nothing_heavy() -> None:
    """An unchanged tree costs a scan; the command's own start must not show beside it."""
    program = (
        "import sys, services.cli.__main__, services.cli.index\n"
        "print(' '.join({name.partition('.')[0] for name in sys.modules}))"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert "grpc" in done.stdout.split()
    assert not set(_HEAVY.split()) & set(done.stdout.split())
