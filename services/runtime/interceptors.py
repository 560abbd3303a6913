"""The server's interceptor: readiness, limits, validation, errors, metrics, trace of every call."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc

from services.runtime import call_metrics, call_traces
from services.runtime.access import AccessRules, Scope, note_caller, read_for
from services.runtime.deadlines import note_deadline
from services.runtime.errors import (
    Code,
    ForbiddenError,
    LodestoneError,
    NotImplementedYetError,
    OverloadedError,
    ShuttingDownError,
    UnauthenticatedError,
)
from services.runtime.log import get_logger
from services.runtime.reading import readable, reader
from services.runtime.status import failed_before, only_error_in, status_of, trailers_of
from services.runtime.tokens import CALLS_REFUSED
from services.runtime.validation import validate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from opentelemetry.trace import Span

    from services.runtime.access import Identity, MethodRule
    from services.runtime.call_metrics import CallObserver
    from services.runtime.tokens import AcceptedTokens

_HEALTH = "/grpc.health."
_REFLECTION = "/grpc.reflection."
_FACTORIES = {
    (False, False): ("unary", grpc.unary_unary_rpc_method_handler, "unary_unary"),
    (False, True): ("server_stream", grpc.unary_stream_rpc_method_handler, "unary_stream"),
    (True, False): ("client_stream", grpc.stream_unary_rpc_method_handler, "stream_unary"),
    (True, True): ("bidi_stream", grpc.stream_stream_rpc_method_handler, "stream_stream"),
}
_DEADLINE_SLACK_SECONDS = 0.02
"""A caller that gives up at its deadline is heard this much before the server's own clock says so:
the server starts its clock later, and deadlines travel rounded up."""


@dataclass
class Gate:
    """Whether calls are let in, how many are inside, and how many came while none was let in."""

    max_calls: int
    open: bool = False
    draining: bool = False
    calls: int = 0
    refused: int = 0
    _empty: asyncio.Event = field(default_factory=asyncio.Event)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Lets a call in and counts it until it is gone, or raises why not."""
        if self.draining or not self.open:
            self.refused += 1
            what = "is stopping" if self.draining else "is starting"
            raise ShuttingDownError(f"The server {what}.", retry_after_seconds=0.5)
        if self.calls >= self.max_calls:
            raise OverloadedError(
                "Too many calls at once.",
                metadata={"limit": str(self.max_calls), "queued": str(self.calls)},
                retry_after_seconds=0.2,
            )
        self.calls += 1
        self._empty.clear()
        try:
            yield
        finally:
            self.calls -= 1
            if self.calls == 0:
                self._empty.set()

    async def wait_until_empty(self) -> None:
        """Waits until no call is inside."""
        if self.calls:
            await self._empty.wait()


class _Admission:
    """What the messages of a call are held to; this one is of a caller that needs no token."""

    def check(self, request: Any) -> None:
        """Raises when a request breaks a rule, or names what is not the caller's."""
        validate(request)

    def hold(self) -> None:
        """Raises when the call may not go on."""


@dataclass(frozen=True, slots=True)
class _Caller(_Admission):
    """The same of a caller with a token."""

    identity: Identity
    rule: MethodRule
    accepted: Callable[[], Identity]
    """Returns whose the token is now."""

    def check(self, request: Any) -> None:
        """As the base class says."""
        validate(request)
        with _refusals_counted():
            self.rule.check_request(self.identity, request)

    def hold(self) -> None:
        """Raises _TokenChangedError when the token is taken back, or allows something else."""
        try:
            if self.accepted() == self.identity:
                return
        except UnauthenticatedError:
            pass
        raise _TokenChangedError("The token of this stream counts no more as it did: begin again.")


class _TokenChangedError(UnauthenticatedError):
    """Whoever has another token by now begins again with it, as rotation wants; others cannot."""

    code = Code.UNAVAILABLE


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every method but health and reflection.

    Servicers write unary methods as coroutines and streams as async generators, and simply raise.
    """

    def __init__(self, domain: str, gate: Gate, tokens: AcceptedTokens | None = None) -> None:
        self._domain = domain
        self._gate = gate
        self._tokens = tokens
        self._rules = AccessRules()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Returns the method's handler, wrapped."""
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        if handler is None or method.startswith(_HEALTH):
            return handler
        if method.startswith(_REFLECTION):
            return handler if self._may_reflect(handler_call_details) else _refusal(handler)
        streams = (bool(handler.request_streaming), bool(handler.response_streaming))
        kind, factory, attribute = _FACTORIES[streams]
        answer = _stream_answers if handler.response_streaming else _answer
        return factory(
            self._wrap(getattr(handler, attribute), answer, kind, method),
            request_deserializer=reader(handler.request_deserializer, method),
            response_serializer=handler.response_serializer,
        )

    def _wrap(self, inner: Any, answer: Any, kind: str, method: str) -> Any:
        async def call(request: Any, context: Any) -> Any:
            observer = call_metrics.SERVER.start(kind, method)
            failure: Exception | None = None
            note_deadline(context.time_remaining())
            with call_traces.server_span(method, context.invocation_metadata()) as span:
                try:
                    admission = self._admit(method, context)
                    with self._gate.inside():
                        requests = _checked(request, observer, admission)
                        response = await answer(inner, requests, context, observer, admission)
                except asyncio.CancelledError:
                    _end(span, observer, _why_cancelled(context))
                    raise
                except grpc.aio.AbortError:
                    _end(span, observer, _code_of(context))
                    raise
                except Exception as error:  # noqa: BLE001 - every error becomes a status
                    failure = error
                # Outside of `except`, so that no traceback of grpc's holds the error's text.
                if failure is not None:
                    await self._abort(failure, context, method, span, observer)
                _end(span, observer, _code_of(context))
                return response

        return call

    def _admit(self, method: str, context: Any) -> _Admission:
        """Returns what checks the messages of a call, once its caller is known and may make it.

        Raises:
            UnauthenticatedError: nobody is known by the token.
            ForbiddenError: its scopes do not allow the method.
        """
        if self._tokens is None:
            return _Admission()
        authorization = _authorization(context.invocation_metadata())
        accepted = partial(self._tokens.identify, authorization)
        identity = accepted()
        note_caller(identity)
        rule = self._rules.of(method)
        with _refusals_counted():
            rule.check_scope(identity)
        if rule.scope is Scope.READ:
            read_for(identity)
        return _Caller(identity, rule, accepted)

    def _may_reflect(self, details: grpc.HandlerCallDetails) -> bool:
        """Returns whether the caller may ask for the contracts: whoever is known may."""
        if self._tokens is None:
            return True
        try:
            self._tokens.identify(_authorization(details.invocation_metadata))
        except UnauthenticatedError:
            return False
        return True

    async def _abort(
        self, error: BaseException, context: Any, method: str, span: Span, observer: CallObserver
    ) -> None:
        """Ends the call with the error's status."""
        error = only_error_in(error)
        if isinstance(error, NotImplementedError):
            error = NotImplementedYetError(
                "This version does not build this method.", metadata={"method": method}
            )
        status = status_of(error, self._domain)
        code = grpc.StatusCode.INTERNAL
        if isinstance(error, LodestoneError):
            code = grpc.StatusCode[error.code.value]
        if code is grpc.StatusCode.INTERNAL:
            get_logger().error("call_failed", method=method, exc_info=error)
        _end(span, observer, code.name)
        tries = failed_before(context.invocation_metadata())
        trailers = trailers_of(error, status, failed_before=tries)
        await context.abort(code, status.message, trailers)


async def _answer(
    inner: Any, request: Any, context: Any, observer: CallObserver, _: _Admission
) -> Any:
    response = await inner(request, context)
    observer.sent()
    return response


async def _stream_answers(
    inner: Any, request: Any, context: Any, observer: CallObserver, admission: _Admission
) -> None:
    """Writes what a servicer's generator yields; it is closed before the call ends.

    A generator handed to grpc itself would, when the caller goes away, be closed some time later
    in another task.
    """
    async with aclosing(inner(request, context)) as responses:
        async for response in responses:
            admission.hold()
            try:
                await context.write(response)
            except grpc.aio.InternalError as error:  # there is nobody to write to any more
                raise asyncio.CancelledError from error
            observer.sent()


def _checked(request: Any, observer: CallObserver, admission: _Admission) -> Any:
    """Returns the request, or the stream of requests, each once it is held to the admission."""
    if not hasattr(request, "__aiter__"):
        observer.received()
        admission.check(readable(request))
        return request

    async def requests() -> AsyncIterator[Any]:
        async for item in request:
            observer.received()
            admission.hold()
            admission.check(readable(item))
            yield item

    return requests()


def _authorization(metadata: Any) -> str | None:
    for key, value in metadata or ():
        if key == "authorization":
            return value if isinstance(value, str) else value.decode("ascii", "replace")
    return None


@contextmanager
def _refusals_counted() -> Iterator[None]:
    try:
        yield
    except ForbiddenError:
        CALLS_REFUSED.labels("forbidden").inc()
        raise


def _refusal(handler: Any) -> Any:
    """Returns a handler that refuses a call of the kind that another one handles."""

    async def refuse(_: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "The call needs a bearer token.")

    streams = (bool(handler.request_streaming), bool(handler.response_streaming))
    return _FACTORIES[streams][1](
        refuse,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


def _end(span: Span, observer: CallObserver, code: str) -> None:
    observer.end(code)
    call_traces.end_server_span(span, code)


def _why_cancelled(context: Any) -> str:
    # A deadline and a caller's cancel look alike here but for the time that is left.
    left = context.time_remaining()
    gone = left is not None and left <= _DEADLINE_SLACK_SECONDS
    return "DEADLINE_EXCEEDED" if gone else "CANCELLED"


def _code_of(context: Any) -> str:
    """Returns the code that a servicer set on its context, OK when it set none."""
    code = context.code()
    if isinstance(code, grpc.StatusCode):
        return code.name
    return next((item.name for item in grpc.StatusCode if item.value[0] == code), "OK")
