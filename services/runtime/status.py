"""Errors as rich gRPC statuses, and back: the one place that knows both."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from opentelemetry import trace

from services.runtime.errors import (
    Code,
    InvalidRequestError,
    LodestoneError,
    NotImplementedYetError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import grpc

DETAILS_KEY = "grpc-status-details-bin"
"""Trailing metadata key under which gRPC carries a `google.rpc.Status`."""
_PUSHBACK_KEY = "grpc-retry-pushback-ms"
"""Trailing metadata key by which a server tells gRPC when to repeat a call (gRFC A6)."""
_NEVER, _OUT_OF_TIME = "-1", "DEADLINE_EXCEEDED"
_ATTEMPTS_KEY = "grpc-previous-rpc-attempts"
"""Metadata key by which gRPC tells a server how often it made a call before (gRFC A6)."""

_MAX_MESSAGE_BYTES = 600
_MAX_VALUE_BYTES = 1500
_MAX_METADATA_BYTES = 3500
"""Limits of what an error tells: by default gRPC refuses trailing metadata of more than 8 KiB."""


@dataclass(frozen=True, slots=True)
class RemoteError:
    """What a status told of an error on the other side of a call."""

    code: str
    message: str
    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    retry_after_seconds: float | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    """What is wrong with which field of the request."""


def status_of(error: BaseException, domain: str) -> status_pb2.Status:
    """Returns the status of an error; an unexpected one tells nothing but its trace id."""
    known = _known(only_error_in(error))
    status = status_pb2.Status(
        code=code_pb2.Code.Value(known.code.value),
        message=_sendable(known.message, _MAX_MESSAGE_BYTES),
    )
    _pack(
        status,
        error_details_pb2.ErrorInfo(
            reason=known.reason,
            domain=domain,
            metadata={} if isinstance(known, InvalidRequestError) else _sendable_map(known),
        ),
    )
    if isinstance(known, InvalidRequestError):
        _pack(
            status,
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(field=name, description=text)
                    for name, text in _sendable_map(known).items()
                ]
            ),
        )
    if known.retry_after_seconds is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(known.retry_after_seconds * 1e9))
        _pack(status, error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def trailers_of(
    error: BaseException, status: status_pb2.Status, *, failed_before: int
) -> tuple[tuple[str, Any], ...]:
    """Returns the trailing metadata that goes with an error and its status.

    Where no replica would answer now, gRPC repeats a call that failed before after the error's
    `retry_after_seconds`, doubled from time to time, instead of its own backoff, which is for
    another replica to try. The times are spread, so that callers do not come back all at once.
    It repeats none that waited in vain for another service for all the time that there was.

    Args:
        error: what ends the call.
        status: the error's status.
        failed_before: how often gRPC has made this call before.
    """
    details = (DETAILS_KEY, status.SerializeToString())
    known = only_error_in(error)
    if isinstance(known, LodestoneError) and known.metadata.get("code") == _OUT_OF_TIME:
        return (details, (_PUSHBACK_KEY, _NEVER))
    if not failed_before or not isinstance(known, LodestoneError) or not known.everywhere:
        return (details,)
    wait_seconds = (known.retry_after_seconds or 0.0) * 2 ** min(failed_before - 1, 4)
    wait_ms = wait_seconds * 1000 * random.uniform(0.75, 1.25)  # noqa: S311 - spreads retries
    return (details, (_PUSHBACK_KEY, str(round(wait_ms))))


def failed_before(metadata: Iterable[tuple[str, str | bytes]] | None) -> int:
    """Returns how often gRPC made a call before, by the metadata of its request."""
    for key, value in metadata or ():
        if key == _ATTEMPTS_KEY and isinstance(value, str) and value.isdecimal():
            return int(value[:4])
    return 0


def read_status(status: status_pb2.Status) -> RemoteError:
    """Returns what a status tells."""
    reason, metadata, retry = "", {}, None
    fields: dict[str, str] = {}
    for detail in status.details:
        info, delay = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        request = error_details_pb2.BadRequest()
        if detail.Unpack(info):
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(delay):
            retry = delay.retry_delay.ToNanoseconds() / 1e9
        elif detail.Unpack(request):
            fields = {item.field: item.description for item in request.field_violations}
    return RemoteError(
        code=code_pb2.Code.Name(cast("Any", status.code)),
        message=status.message,
        reason=reason,
        metadata=metadata,
        retry_after_seconds=retry,
        fields=fields,
    )


def read_rpc_error(error: grpc.RpcError) -> RemoteError:
    """Returns what a failed call tells, also when it carries no details."""
    call = cast("Any", error)
    for key, value in call.trailing_metadata() or ():
        if key == DETAILS_KEY:
            return read_status(status_pb2.Status.FromString(value))
    return RemoteError(code=call.code().name, message=call.details() or "")


def only_error_in(error: BaseException) -> BaseException:
    """Returns the error inside a group of one, as a task group raises it."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _sendable(text: str, limit_bytes: int) -> str:
    """Returns text that protobuf takes, cut to a number of bytes.

    Names of files may hold bytes that are not UTF-8, which Python keeps as lone surrogates.
    """
    data = text.encode("utf-8", "replace")
    if len(data) <= limit_bytes:
        return data.decode()
    return data[:limit_bytes].decode("utf-8", "ignore") + "..."


def _sendable_map(error: LodestoneError) -> dict[str, str]:
    """Returns the metadata up to the limits: what does not fit is left out from the end."""
    kept: dict[str, str] = {}
    left_bytes = _MAX_METADATA_BYTES
    for name, text in error.metadata.items():
        value = _sendable(text, _MAX_VALUE_BYTES)
        left_bytes -= len(name.encode("utf-8", "replace")) + len(value.encode())
        if left_bytes < 0:
            break
        kept[_sendable(name, _MAX_VALUE_BYTES)] = value
    return kept


def _known(error: BaseException) -> LodestoneError:
    if isinstance(error, LodestoneError):
        return error
    if isinstance(error, NotImplementedError):
        return NotImplementedYetError("This version does not build this method.")
    if isinstance(error, asyncio.CancelledError):
        return _CancelledError("The call was cancelled.")
    trace_id = format(trace.get_current_span().get_span_context().trace_id, "032x")
    return LodestoneError(
        "The server did not expect this; its log tells more.", metadata={"trace_id": trace_id}
    )


class _CancelledError(LodestoneError):
    reason = "ERROR_REASON_CANCELLED"
    code = Code.CANCELLED


def _pack(status: status_pb2.Status, detail: Any) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)
    status.details.append(packed)
