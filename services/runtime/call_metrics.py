"""Metrics of gRPC calls, in the names that go-grpc-middleware made standard."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from prometheus_client import Counter, Histogram

if TYPE_CHECKING:
    from collections.abc import Callable

_LABELS = ("grpc_type", "grpc_service", "grpc_method")
_SPELT_OTHERWISE = {"OK": "OK", "CANCELLED": "Canceled"}
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class CallMetrics:
    """The counters of one side: `server` or `client`."""

    def __init__(self, side: str) -> None:
        doing = "on the server" if side == "server" else "by the client"
        self.started = Counter(f"grpc_{side}_started_total", f"Calls started {doing}.", _LABELS)
        self.handled = Counter(
            f"grpc_{side}_handled_total", f"Calls ended {doing}.", (*_LABELS, "grpc_code")
        )
        self.received = Counter(
            f"grpc_{side}_msg_received_total", f"Messages received {doing}.", _LABELS
        )
        self.sent = Counter(f"grpc_{side}_msg_sent_total", f"Messages sent {doing}.", _LABELS)
        self.seconds = Histogram(
            f"grpc_{side}_handling_seconds", f"Time of calls {doing}.", _LABELS, buckets=_BUCKETS
        )

    def start(self, kind: str, full_method: str) -> CallObserver:
        """Counts a call as started; returns what counts the rest of it."""
        service, _, method = full_method.strip("/").rpartition("/")
        labels = (kind, service, method)
        self.started.labels(*labels).inc()
        return CallObserver(self, labels)


class CallObserver:
    """Counts what happens in one call."""

    def __init__(self, metrics: CallMetrics, labels: tuple[str, str, str]) -> None:
        self._metrics = metrics
        self._labels = labels
        self._start_seconds = time.perf_counter()
        self._ended = False
        self.received: Callable[[], None] = metrics.received.labels(*labels).inc
        self.sent: Callable[[], None] = metrics.sent.labels(*labels).inc

    def end(self, code: str) -> None:
        """Counts the call as ended with a code, the first time alone."""
        if self._ended:
            return
        self._ended = True
        self._metrics.handled.labels(*self._labels, _camel(code)).inc()
        elapsed = time.perf_counter() - self._start_seconds
        self._metrics.seconds.labels(*self._labels).observe(elapsed)


def _camel(code: str) -> str:
    """Returns a code as Go spells it, e.g. `DeadlineExceeded`: dashboards expect that."""
    if code in _SPELT_OTHERWISE:
        return _SPELT_OTHERWISE[code]
    return "".join(word.capitalize() for word in code.split("_"))


SERVER = CallMetrics("server")
CLIENT = CallMetrics("client")
