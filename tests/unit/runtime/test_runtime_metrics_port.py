"""The metrics port: files that change under it, and connections that say nothing."""

from __future__ import annotations

import socket
import ssl
import time
import urllib.request
from contextlib import ExitStack, contextmanager
from threading import Thread
from typing import TYPE_CHECKING

import pytest

from services.runtime import metrics_port
from services.runtime.tls_files import TlsFiles
from tests.support.certificates import CertificateFiles, new_authority, write_certificates
from tests.unit.runtime.test_runtime_tls import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_SECONDS = 10.0


@contextmanager
def _port(tls: TlsFiles) -> Iterator[int]:
    """Serves metrics; yields the port."""
    port = free_port()
    stop = metrics_port.serve_metrics(f"127.0.0.1:{port}", "LODESTONE_X_METRICS_LISTEN", tls)
    try:
        yield port
    finally:
        stop()


def _tls(files: CertificateFiles, *, require_client: bool = False) -> TlsFiles:
    return TlsFiles(files.certificate, files.key, files.authorities, require_client)


def _trusting(files: CertificateFiles, *, certificate: bool = False) -> ssl.SSLContext:
    """Returns a client's side, which shows its certificate if it is to."""
    context = ssl.create_default_context(cafile=str(files.authorities))
    if certificate:
        context.load_cert_chain(files.certificate, files.key)
    return context


def _scrape(port: int, client: ssl.SSLContext | None = None) -> str:
    url = f"{'https' if client else 'http'}://localhost:{port}/metrics"
    with urllib.request.urlopen(url, context=client, timeout=_SECONDS) as answer:
        return str(answer.read().decode())


def _is_let_in(port: int, client: ssl.SSLContext) -> bool:
    try:
        return "python_info" in _scrape(port, client)
    except OSError:
        return False


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _SECONDS
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"


def _is_closed(connection: socket.socket) -> bool:
    """Waits until the other side ends a connection."""
    connection.settimeout(_SECONDS)
    return connection.recv(1) == b""


@pytest.mark.slow
def test_new_certificates_and_authorities_count_without_a_restart(tmp_path: Path) -> None:
    """Red when the files are read once, and when new authorities are added to the old ones."""
    first, second = new_authority(), new_authority()
    files = write_certificates(tmp_path / "server", first)
    old = _trusting(write_certificates(tmp_path / "old", first), certificate=True)
    new = _trusting(write_certificates(tmp_path / "new", second), certificate=True)
    both = _trusting(write_certificates(tmp_path / "mixed", first), certificate=True)
    both.load_verify_locations(tmp_path / "new" / "ca.crt")
    with _port(_tls(files, require_client=True)) as port:
        assert _is_let_in(port, old)
        assert not _is_let_in(port, new)

        write_certificates(tmp_path / "server", second)
        _until(lambda: _is_let_in(port, new))

        assert not _is_let_in(port, old)
        assert not _is_let_in(port, both)


@pytest.mark.slow
def test_a_key_that_does_not_fit_yet_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Between a new certificate and its key, what was there goes on to count."""
    authority = new_authority()
    files = write_certificates(tmp_path / "server", authority)
    fresh = write_certificates(tmp_path / "fresh", authority)
    client = _trusting(files)
    told: list[str] = []

    def is_told(event: str) -> bool:
        assert _is_let_in(port, client)
        told.append(capsys.readouterr().err)
        return event in "".join(told)

    with _port(_tls(files)) as port:
        files.certificate.write_bytes(fresh.certificate.read_bytes())
        _until(lambda: is_told("certificates_not_reloaded"))
        files.key.write_bytes(fresh.key.read_bytes())
        _until(lambda: is_told("certificates_reloaded"))


def test_only_clients_with_a_certificate_scrape_where_it_is_required(tmp_path: Path) -> None:
    authority = new_authority()
    files = write_certificates(tmp_path / "server", authority)

    with _port(_tls(files, require_client=True)) as port:
        assert _is_let_in(port, _trusting(files, certificate=True))
        assert not _is_let_in(port, _trusting(files))


def test_a_connection_that_says_nothing_holds_up_no_scrape(tmp_path: Path) -> None:
    """Red when the handshake is made where connections are accepted."""
    files = write_certificates(tmp_path / "server", new_authority())

    with _port(_tls(files)) as port, socket.create_connection(("127.0.0.1", port)):
        assert _is_let_in(port, _trusting(files))


@pytest.mark.parametrize("over_tls", [False, True])
def test_of_too_many_connections_the_oldest_go(tmp_path: Path, *, over_tls: bool) -> None:
    """Red when connections are without number, and when new ones are refused instead."""
    files = write_certificates(tmp_path / "server", new_authority())
    client = _trusting(files) if over_tls else None
    with _port(_tls(files) if over_tls else TlsFiles()) as port, ExitStack() as opened:
        silent = [
            opened.enter_context(socket.create_connection(("127.0.0.1", port)))
            for _ in range(metrics_port.MOST_CONNECTIONS + 1)
        ]

        assert "python_info" in _scrape(port, client)
        assert _is_closed(silent[0])
        silent[-1].setblocking(False)
        with pytest.raises(BlockingIOError):
            silent[-1].recv(1)


@pytest.mark.parametrize("over_tls", [False, True])
def test_a_connection_ends_after_its_time_whatever_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, over_tls: bool
) -> None:
    """Red when nothing ends a connection that says nothing."""
    monkeypatch.setattr(metrics_port, "LONGEST_SECONDS", 0.2)
    files = write_certificates(tmp_path / "server", new_authority())

    with (
        _port(_tls(files) if over_tls else TlsFiles()) as port,
        socket.create_connection(("127.0.0.1", port)) as silent,
    ):
        assert _is_closed(silent)


def test_what_is_no_handshake_is_not_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Scanners of ports speak anything: no stack trace of theirs fills the log."""
    files = write_certificates(tmp_path / "server", new_authority())

    with (
        _port(_tls(files)) as port,
        socket.create_connection(("127.0.0.1", port)) as scanner,
    ):
        scanner.sendall(b"GET / HTTP/1.0\r\n\r\n")
        while scanner.recv(1024):
            pass
        assert _is_let_in(port, _trusting(files))

    assert "Traceback" not in capfd.readouterr().err


def test_a_stop_does_not_wait_for_a_look_at_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Red when the thread that serves is not woken."""
    monkeypatch.setattr(metrics_port, "_LOOK_SECONDS", 3600.0)
    port = free_port()
    stop = metrics_port.serve_metrics(f"127.0.0.1:{port}", "LODESTONE_X", TlsFiles())
    assert "python_info" in _scrape(port)

    stopping = Thread(target=stop, daemon=True)
    stopping.start()
    stopping.join(_SECONDS)

    assert not stopping.is_alive()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=_SECONDS)
