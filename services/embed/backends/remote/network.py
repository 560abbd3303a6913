"""Connections whose waits all end with one deadline, however the other side spreads its bytes."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpcore2

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable, Iterator

_PIECE_BYTES = 1 << 14
"""Bytes that are written between two looks at the clock."""


class DeadlineNetwork(httpcore2.NetworkBackend):
    """Opens connections that keep to the deadline of the thread which uses them.

    The HTTP library counts its timeouts anew with each byte that comes or goes: a server that sends
    one now and then, in the head of an answer, between its parts or before it, would hold a request
    for ever. Threads share it, and each sends one request at a time.
    """

    def __init__(self) -> None:
        self._opens = httpcore2.SyncBackend()
        self._thread = threading.local()

    @contextmanager
    def until(self, deadline: float) -> Iterator[None]:
        """Has this thread wait for no connection beyond a time of `time.monotonic`."""
        self._thread.deadline = deadline
        try:
            yield
        finally:
            del self._thread.deadline

    def seconds_left(self, timeout: float | None, late: type[httpcore2.TimeoutException]) -> float:
        """Returns how long this thread may wait now: for a timeout at most.

        Raises:
            TimeoutException: for no time any more; of the class `late`.
        """
        left: float = self._thread.deadline - time.monotonic()
        if left <= 0:
            raise late
        return left if timeout is None else min(left, timeout)

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        """Returns a connection to a host."""
        left = self.seconds_left(timeout, httpcore2.ConnectTimeout)
        opened = self._opens.connect_tcp(host, port, left, local_address, socket_options)
        return _DeadlineStream(opened, self)


class _DeadlineStream(httpcore2.NetworkStream):
    """One connection; the deadline is that of the thread which reads or writes."""

    def __init__(self, stream: httpcore2.NetworkStream, network: DeadlineNetwork) -> None:
        self._stream = stream
        self._network = network

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Returns what has come."""
        left = self._network.seconds_left(timeout, httpcore2.ReadTimeout)
        return self._stream.read(max_bytes, left)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Writes all, piece by piece."""
        for at in range(0, len(buffer), _PIECE_BYTES):
            left = self._network.seconds_left(timeout, httpcore2.WriteTimeout)
            self._stream.write(buffer[at : at + _PIECE_BYTES], left)

    def close(self) -> None:
        """Closes the connection."""
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore2.NetworkStream:
        """Returns the connection with TLS on it."""
        left = self._network.seconds_left(timeout, httpcore2.ConnectTimeout)
        stream = self._stream.start_tls(ssl_context, server_hostname, left)
        return _DeadlineStream(stream, self._network)

    def get_extra_info(self, info: str) -> Any:
        """Returns what is known of the connection."""
        return self._stream.get_extra_info(info)
