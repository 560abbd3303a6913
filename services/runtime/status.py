"""Errors as rich gRPC statuses, and back: the one place that knows both."""

from __future__ import annotations

import asyncio
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
    from collections.abc import Mapping

    import grpc

DETAILS_KEY = "grpc-status-details-bin"
"""Trailing metadata key under which gRPC carries a `google.rpc.Status`."""

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
