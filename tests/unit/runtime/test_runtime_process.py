"""A real process: its signals, its exit codes and what it writes when it cannot start."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import grpc
import pytest

from services.runtime.channel import connect
from services.runtime.exits import ExitCode
from tests.support.certificates import new_authority, write_certificates
from tests.unit.runtime.sample_calls import embed
from tests.unit.runtime.sample_service import SECRET

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    StartProcess = Callable[..., "Process"]

pytestmark = pytest.mark.slow
_WAIT_SECONDS = 20


class Process:
    """The sample service as a process."""

    def __init__(self, arguments: tuple[str, ...], environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.unit.runtime.sample_service", *arguments],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.events: list[str] = []

    def wait_for(self, event: str) -> None:
        """Reads events until one comes."""
        assert self._process.stdout is not None
        while event not in self.events:
            line = self._process.stdout.readline()
            assert line, f"the process ended before {event!r}: {self.end()}"
            self.events.append(line.strip())

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal."""
        self._process.send_signal(number)

    def end(self) -> tuple[int, str]:
        """Waits for the end; returns the exit code and what stood on standard error."""
        out, err = self._process.communicate(timeout=_WAIT_SECONDS)
        self.events += out.splitlines()
        return self._process.returncode, err

    def kill(self) -> None:
        """Makes sure that nothing is left of it."""
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def start_process(address: str) -> Iterator[StartProcess]:
    """Starts sample services that are gone when the test ends; settings have no prefix."""
    started: list[Process] = []

    def start(*arguments: str, **settings: str) -> Process:
        given = {f"LODESTONE_EMBED_{name.upper()}": value for name, value in settings.items()}
        started.append(Process(arguments, {"LODESTONE_EMBED_LISTEN": address, **given}))
        return started[-1]

    yield start
    for process in started:
        process.kill()


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port of this machine that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_closes_in_order_and_exits_with_0(
    start_process: StartProcess, number: signal.Signals, address: str
) -> None:
    process = start_process()
    process.wait_for("started")

    process.signal(number)

    code, log = process.end()
    assert (code, process.events) == (0, ["start", "started", "drain", "close"])
    assert "service_stopped" in log
    assert not os.path.lexists(address.removeprefix("unix:"))


def test_a_second_signal_exits_at_once(start_process: StartProcess) -> None:
    process = start_process("hang-in-drain", drain_seconds="60")
    process.wait_for("started")
    process.signal(signal.SIGTERM)
    process.wait_for("drain")

    process.signal(signal.SIGTERM)

    code, err = process.end()
    assert code == ExitCode.INTERRUPTED
    assert err.endswith("lodestone-embed: stopped at once by a second signal\n")
    assert "close" not in process.events


def test_a_signal_during_the_start_is_not_lost(start_process: StartProcess) -> None:
    """What was half built is closed; nothing was taken, so nothing is drained."""
    process = start_process("wait-in-start")
    process.wait_for("start")

    process.signal(signal.SIGTERM)

    code, _ = process.end()
    assert (code, process.events) == (0, ["start", "close"])


def test_a_drain_that_hangs_ends_with_the_grace(start_process: StartProcess) -> None:
    process = start_process("hang-in-drain", drain_seconds="0.3")
    process.wait_for("started")
    began = time.monotonic()

    process.signal(signal.SIGTERM)

    code, log = process.end()
    assert time.monotonic() - began < 0.3 + 2
    assert (code, process.events[-1]) == (0, "close")
    assert "stop_step_timed_out" in log


def test_a_drain_that_fails_still_closes_and_tells_by_the_exit_code(
    start_process: StartProcess,
) -> None:
    process = start_process("fail-in-drain")
    process.wait_for("started")

    process.signal(signal.SIGTERM)

    code, log = process.end()
    assert (code, process.events[-1]) == (ExitCode.FAILED, "close")
    assert "stop_step_failed" in log
    assert SECRET not in log


def test_a_start_that_fails_closes_and_says_one_line(start_process: StartProcess) -> None:
    process = start_process("fail-in-start")

    code, err = process.end()
    assert (code, process.events) == (ExitCode.MODEL, ["start", "close"])
    assert err == "lodestone-embed: The model does not load.\n"


def test_a_port_in_use_is_one_clear_line(start_process: StartProcess, taken_port: int) -> None:
    code, err = start_process(listen=f"127.0.0.1:{taken_port}").end()

    assert code == ExitCode.ADDRESS_IN_USE
    assert err == (
        f"lodestone-embed: Cannot listen on 127.0.0.1:{taken_port} (Address already in use). Stop "
        "what listens there, or set LODESTONE_EMBED_LISTEN to another address.\n"
    )


def test_a_metrics_port_in_use_is_one_clear_line(
    start_process: StartProcess, taken_port: int
) -> None:
    code, err = start_process(metrics_listen=f"127.0.0.1:{taken_port}").end()

    assert code == ExitCode.ADDRESS_IN_USE
    assert err == (
        f"lodestone-embed: Cannot serve metrics on 127.0.0.1:{taken_port} (Address already in use)."
        " Free the port or set LODESTONE_EMBED_METRICS_LISTEN to another address.\n"
    )


def test_a_socket_in_use_is_not_taken_away(start_process: StartProcess) -> None:
    """Left to itself, gRPC would put its own socket in the place of the one that is served."""
    first = start_process()
    first.wait_for("started")

    code, err = start_process().end()

    assert code == ExitCode.ADDRESS_IN_USE
    assert "Address already in use" in err
    first.signal(signal.SIGTERM)
    assert first.end()[0] == 0


def test_a_socket_that_a_killed_process_left_is_taken(start_process: StartProcess) -> None:
    first = start_process()
    first.wait_for("started")
    first.signal(signal.SIGKILL)
    first.end()

    second = start_process()
    second.wait_for("started")

    second.signal(signal.SIGTERM)
    assert second.end()[0] == 0


def test_a_wrong_setting_is_one_clear_line(start_process: StartProcess) -> None:
    code, err = start_process(drain_secconds="3").end()

    assert code == ExitCode.USAGE
    assert err == (
        "lodestone-embed: Unknown setting LODESTONE_EMBED_DRAIN_SECCONDS. "
        "Did you mean LODESTONE_EMBED_DRAIN_SECONDS?\n"
    )


async def test_a_collector_that_is_not_there_does_not_hold_up_the_stop(
    start_process: StartProcess, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LODESTONE_OTLP_ENDPOINT", "http://127.0.0.1:1")
    process = start_process()
    process.wait_for("started")
    async with connect(address) as channel:
        await embed(channel, "echo", wait_for_ready=True, timeout=5)
    began = time.monotonic()

    process.signal(signal.SIGTERM)

    assert process.end()[0] == 0
    assert time.monotonic() - began < 4


async def test_tokens_are_rotated_and_revoked_while_a_process_serves(
    start_process: StartProcess, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the command, as who operates it does; red where a process reads its file at the start."""
    monkeypatch.setenv("LODESTONE_ACCEPTED_TOKENS_FILE", str(tmp_path / "accepted.json"))
    old = _made_token()
    process = start_process()
    process.wait_for("started")
    assert await _code_of(address, old["token"], tmp_path) == "OK"

    new = _made_token()
    await _until_code(address, new["token"], tmp_path, "OK")
    assert await _code_of(address, old["token"], tmp_path) == "OK"

    _lodestone("token", "revoke", old["id"])
    await _until_code(address, old["token"], tmp_path, "UNAUTHENTICATED")
    assert await _code_of(address, new["token"], tmp_path) == "OK"

    process.signal(signal.SIGTERM)
    assert process.end()[0] == 0


def _made_token() -> dict[str, str]:
    made: dict[str, str] = json.loads(_lodestone("token", "new", "bot", "--scope", "run", "--json"))
    return made


def _lodestone(*arguments: str) -> str:
    command = [sys.executable, "-m", "services.cli", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=_WAIT_SECONDS, check=True
    )
    return done.stdout


async def _code_of(address: str, token: str, folder: Path) -> str:
    own = folder / "own"
    own.write_text(token, encoding="ascii")
    async with connect(address, token_file=own) as channel:
        try:
            await embed(channel, "echo", wait_for_ready=True, timeout=5)
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)
    return "OK"


async def _until_code(address: str, token: str, folder: Path, code: str) -> None:
    deadline = time.monotonic() + 5
    while (told := await _code_of(address, token, folder)) != code:
        assert time.monotonic() < deadline, told
        await asyncio.sleep(0.05)


def test_all_that_a_service_writes_is_json(tmp_path: Path) -> None:
    """Whoever tries a port without TLS makes gRPC's core tell of it, and collectors read lines.

    Red when the core is not told to be silent before it is loaded.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    files = write_certificates(tmp_path / "tls", new_authority())
    environment = {
        **os.environ,
        **files.environment(),
        "LODESTONE_IO_LISTEN": f"127.0.0.1:{port}",
        "PYTHONWARNINGS": "always",
    }
    with subprocess.Popen(
        [sys.executable, "-m", "services.io"], env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        lines = [process.stderr.readline()]
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
            while connection.recv(1024):
                pass
        process.send_signal(signal.SIGTERM)
        lines += process.stderr.read().splitlines()

    assert {"service_ready", "service_stopped"} <= {json.loads(line)["event"] for line in lines}
