"""Channels to other services: retries at one place, metrics and traces on every call."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import grpc

from services.runtime import call_metrics, call_traces

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

_INFRASTRUCTURE = ("/grpc.health.", "/grpc.reflection.")
_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1},
}


def connect(
    address: str,
    *,
    service: str = "",
    max_message_bytes: int = 64 << 20,
) -> grpc.aio.Channel:
    """Returns a channel that retries UNAVAILABLE with backoff inside each call's deadline.

    It connects on first use, and again after the other side was restarted; a call that is to wait
    for that longer than the retries do (about a second) says `wait_for_ready=True`. `service` is
    the short name of this process, for the user agent that the other side sees.
    """
    agent = [("grpc.primary_user_agent", f"lodestone-{service}")] if service else []
    return grpc.aio.insecure_channel(
        address,
        options=[
            *agent,
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", max_message_bytes),
            ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2000),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
        ],
        interceptors=[_UnaryUnary(), _UnaryStream(), _StreamUnary(), _StreamStream()],
    )


class _Observed:
    """Counts and traces one outgoing call from its start to its end, whatever reads it."""

    def __init__(self, kind: str, details: Any) -> None:
        method = details.method
        name = method.decode() if isinstance(method, bytes) else str(method)
        self._observer = call_metrics.CLIENT.start(kind, name)
        self._span = None if name.startswith(_INFRASTRUCTURE) else call_traces.client_span(name)
        self._unary = kind in {"unary", "client_stream"}
        self.details = details
        if self._span is not None:
            headers = call_traces.headers_of(self._span)
            metadata = grpc.aio.Metadata(*tuple(details.metadata or ()), *headers)
            self.details = details._replace(metadata=metadata)

    async def start(self, begin: Callable[[Any, Any], Awaitable[Any]], request: Any) -> Any:
        """Makes the call; returns it."""
        try:
            call = await begin(self.details, request)
        except asyncio.CancelledError:
            self._end("CANCELLED")
            raise
        except BaseException:
            self._end("UNKNOWN")
            raise
        call.add_done_callback(self._done)
        return call

    def sent(self, request: Any) -> Any:
        """Counts a request and hands it on."""
        self._observer.sent()
        return request

    async def sent_each(self, requests: Any) -> AsyncIterator[Any]:
        """Counts a stream's requests as they are taken; they may come from a plain iterable."""
        if hasattr(requests, "__aiter__"):
            async for request in requests:
                yield self.sent(request)
        else:
            for request in requests:
                yield self.sent(request)

    async def received_each(self, responses: Any) -> AsyncIterator[Any]:
        """Counts a stream's responses as they are read."""
        async for response in responses:
            self._observer.received()
            yield response

    def _done(self, call: Any) -> None:
        code = _code_of(call)
        if self._unary and code == "OK":
            self._observer.received()
        self._end(code)

    def _end(self, code: str) -> None:
        self._observer.end(code)
        if self._span is not None:
            call_traces.end_client_span(self._span, code)


def _code_of(finished: Any) -> str:
    """Returns the code of a call that has ended.

    The status is there, so the coroutine that unwraps it ends at its first step. A task for it
    could outlive the loop.
    """
    unwrap = finished.code()
    try:
        unwrap.send(None)
    except StopIteration as end:
        return str(end.value.name)
    unwrap.close()
    return "UNKNOWN"


class _UnaryUnary(grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        observed = _Observed("unary", details)
        return await observed.start(continuation, observed.sent(request))


class _UnaryStream(grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        observed = _Observed("server_stream", details)
        call = await observed.start(continuation, observed.sent(request))
        return observed.received_each(call)


class _StreamUnary(grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(self, continuation: Any, details: Any, requests: Any) -> Any:
        observed = _Observed("client_stream", details)
        return await observed.start(continuation, observed.sent_each(requests))


class _StreamStream(grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(self, continuation: Any, details: Any, requests: Any) -> Any:
        observed = _Observed("bidi_stream", details)
        call = await observed.start(continuation, observed.sent_each(requests))
        return observed.received_each(call)
