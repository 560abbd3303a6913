"""The metrics port of a process: `/metrics` in the clear or over TLS, for whoever scrapes."""

from __future__ import annotations

import socket
import ssl
import time
from contextlib import suppress
from functools import partial
from socketserver import ThreadingMixIn
from threading import Thread
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import prometheus_client

from services.runtime.exits import ExitCode, StartError
from services.runtime.file_watch import FileWatch
from services.runtime.log import get_logger
from services.runtime.tls_files import reread

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.runtime.tls_files import TlsFiles

MOST_CONNECTIONS = 32
"""Connections, and so threads, at one time: beyond it the oldest is closed."""

LONGEST_SECONDS = 20.0
"""Longest time of a connection, from its first packet to its last; a scrape takes 10 at most."""

_LOOK_SECONDS = 0.5
"""How often it is looked for connections that are to end, where no new one comes."""


def serve_metrics(address: str, variable: str, tls: TlsFiles) -> Callable[[], None]:
    """Serves `/metrics` on `host:port`, over TLS when there are files for it; returns a stop.

    Raises:
        StartError: the address is in use or not this machine's, or the files are wrong.
    """
    host, _, port = address.rpartition(":")
    contexts = _Contexts(tls) if tls.serves else None
    try:
        server = _Server(host.strip("[]"), int(port), contexts)
    except OSError as error:
        raise StartError(
            ExitCode.ADDRESS_IN_USE,
            f"Cannot serve metrics on {address} ({error.strerror}). "
            f"Free the port or set {variable} to another address.",
        ) from None
    serve = partial(server.serve_forever, _LOOK_SECONDS)
    thread = Thread(target=serve, name="metrics", daemon=True)
    thread.start()
    get_logger().info("metrics_ready", listen=f"{host}:{server.server_port}")

    def stop() -> None:
        with suppress(OSError):
            server.socket.shutdown(socket.SHUT_RDWR)  # wakes who waits for connections
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)

    return stop


class _Contexts:
    """What handshakes go by: new files count with the next connection."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._watch = FileWatch(*files.paths())
        self._context = files.server_context()

    def current(self) -> ssl.SSLContext:
        """Returns the context to use now, with which nobody is trusted whom the files dropped."""
        if self._watch.changed():
            self._context = reread(self._files.server_context, self._watch) or self._context
        return self._context


class _Handler(WSGIRequestHandler):
    """Answers one request, and logs none."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """As the base class says."""


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each connection, which also shakes hands: no client holds up another."""

    daemon_threads = True
    request_queue_size = MOST_CONNECTIONS

    def __init__(self, host: str, port: int, contexts: _Contexts | None) -> None:
        self._contexts = contexts
        self._open: dict[Any, float] = {}
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family = found[0][0]
        super().__init__((str(found[0][4][0]), port), _Handler)
        self.set_app(prometheus_client.make_wsgi_app())

    def get_request(self) -> tuple[socket.socket, Any]:
        """As the base class says; the hands are not shaken yet."""
        connection, peer = super().get_request()
        if self._contexts is not None:
            connection = self._contexts.current().wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        return connection, peer

    def process_request(self, request: Any, client_address: Any) -> None:
        """As the base class says."""
        self._open[request] = time.monotonic()
        super().process_request(request, client_address)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """As the base class says; in the connection's own thread."""
        if isinstance(request, ssl.SSLSocket):
            request.do_handshake()
        super().finish_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """As the base class says."""
        self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Ends what has been open for too long, and the oldest of too many; often called."""
        begun = list(self._open.items())
        too_many = len(begun) - MOST_CONNECTIONS
        overdue = time.monotonic() - LONGEST_SECONDS
        for place, (connection, since) in enumerate(begun):
            if place < too_many or since < overdue:
                with suppress(OSError):  # it ended by itself
                    # Its thread reads: beneath TLS, the connection is ended for both.
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing: who does not shake hands, or goes away, is no fault of this process."""
