"""Channels to other services: retries at one place, metrics and traces on every call."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import grpc

from services.runtime import call_metrics, call_traces
from services.runtime.addresses import refuse_clear_token
from services.runtime.file_watch import FileWatch
from services.runtime.reloading import ReloadingChannel
from services.runtime.tls import channel_credentials
from services.runtime.tokens import OwnToken

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from services.runtime.tls_files import TlsFiles

_INFRASTRUCTURE = ("/grpc.health.", "/grpc.reflection.")
_OF_REPLICAS = ("dns:", "ipv4:", "ipv6:")
_SERVICE_CONFIG: dict[str, Any] = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                # A server that stops ends CANCELLED what it queued and had not begun. A call that
                # its caller cancelled is not repeated.
                "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
            },
        }
    ],
    # Half of the tokens, as many calls may fail in a burst before none is repeated: calls that many
    # callers have in flight at a server that ends must not use them up.
    "retryThrottling": {"maxTokens": 1000, "tokenRatio": 0.1},
}
_REPLICAS: dict[str, Any] = {
    "loadBalancingConfig": [{"round_robin": {}}],
    # Each replica tells when it cannot serve, and is left alone from then on: one that drains
    # would else refuse its share of all calls for as long as it drains.
    "healthCheckConfig": {"serviceName": ""},
}


def connect(
    address: str,
    *,
    service: str = "",
    max_message_bytes: int = 64 << 20,
    tls: TlsFiles | None = None,
    token_file: Path | None = None,
) -> grpc.aio.Channel:
    """Returns a channel that retries what a server that stops or is away did not do.

    It does so with backoff inside each call's deadline.

    Calls are spread over the replicas that an address means: `dns:///name:port` for all addresses
    of a name, as of a headless service of Kubernetes, or `ipv4:host:port,host:port`.

    It connects on first use, and again after the other side was restarted; a call that is to wait
    for that longer than the retries do (a second or two, about seven while a server says that the
    database is away) says `wait_for_ready=True`. `service` is
    the short name of this process, for the user agent that the other side sees. With TLS files that
    name authorities it speaks TLS over TCP, and takes up files that change; with a token's file it
    shows the token.

    Raises:
        StartError: a file cannot be read, or a token would travel to another machine without TLS.
    """
    token = OwnToken(token_file) if token_file is not None else None
    secure = tls is not None and tls.connects and not address.startswith("unix:")
    if token is not None and not secure:
        refuse_clear_token(address)
    agent = [("grpc.primary_user_agent", f"lodestone-{service}")] if service else []
    arguments: dict[str, Any] = {
        "options": [
            *agent,
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", max_message_bytes),
            ("grpc.service_config", json.dumps(_service_config(address))),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2000),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
        ],
        "interceptors": [
            kind(token) for kind in (_UnaryUnary, _UnaryStream, _StreamUnary, _StreamStream)
        ],
    }
    if tls is None or not secure:
        return grpc.aio.insecure_channel(address, **arguments)
    return ReloadingChannel(
        lambda: grpc.aio.secure_channel(address, channel_credentials(tls), **arguments),
        FileWatch(*tls.paths()),
    )


def _service_config(address: str) -> dict[str, Any]:
    """Returns how calls are made: replicas that an address means share them while they serve.

    One that means one server keeps gRPC's default, which connects again with the next call; the
    other policy tries all the time and makes calls fail between two tries.
    """
    if address.startswith(_OF_REPLICAS):
        return {**_SERVICE_CONFIG, **_REPLICAS}
    return _SERVICE_CONFIG


class _Observed:
    """Counts and traces one outgoing call from its start to its end, whatever reads it."""

    def __init__(self, kind: str, details: Any, token: OwnToken | None) -> None:
        method = details.method
        name = method.decode() if isinstance(method, bytes) else str(method)
        self._observer = call_metrics.CLIENT.start(kind, name)
        self._span = None if name.startswith(_INFRASTRUCTURE) else call_traces.client_span(name)
        self._unary = kind in {"unary", "client_stream"}
        self.details = details
        headers = list(call_traces.headers_of(self._span)) if self._span is not None else []
        if token is not None:
            headers.append(("authorization", token.header))
        if headers:
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


class _Interceptor:
    def __init__(self, token: OwnToken | None) -> None:
        self._token = token


class _UnaryUnary(_Interceptor, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        observed = _Observed("unary", details, self._token)
        return await observed.start(continuation, observed.sent(request))


class _UnaryStream(_Interceptor, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        observed = _Observed("server_stream", details, self._token)
        call = await observed.start(continuation, observed.sent(request))
        return observed.received_each(call)


class _StreamUnary(_Interceptor, grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(self, continuation: Any, details: Any, requests: Any) -> Any:
        observed = _Observed("client_stream", details, self._token)
        return await observed.start(continuation, observed.sent_each(requests))


class _StreamStream(_Interceptor, grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(self, continuation: Any, details: Any, requests: Any) -> Any:
        observed = _Observed("bidi_stream", details, self._token)
        call = await observed.start(continuation, observed.sent_each(requests))
        return observed.received_each(call)
