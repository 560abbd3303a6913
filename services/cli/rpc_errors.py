"""Turns a failed call into one line and an exit code."""

from __future__ import annotations

from typing import Any

import grpc

from services.cli.options import elsewhere
from services.runtime.exits import ExitCode, StartError

_DETAILS_KEY = "grpc-status-details-bin"
_CODES = {
    grpc.StatusCode.UNAVAILABLE: ExitCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: ExitCode.UNAVAILABLE,
    grpc.StatusCode.INVALID_ARGUMENT: ExitCode.USAGE,
    grpc.StatusCode.CANCELLED: ExitCode.INTERRUPTED,
}
_REASONS = {"DISK_FULL": ExitCode.DISK_FULL}
_PREFIX = "ERROR_REASON_"


def explain(error: grpc.RpcError, service: str = "indexer") -> StartError:
    """Returns the error that ends the command: what the service said, its reason, what to do."""
    call: Any = error
    code = call.code()
    reason, fields = _details(call)
    message = (call.details() or "").strip() or code.name
    if code is grpc.StatusCode.UNAVAILABLE and not reason and elsewhere().address:
        return StartError(
            ExitCode.UNAVAILABLE,
            f"The indexer at {elsewhere().address} does not answer ({message}): `lodestone doctor "
            "--indexer ADDRESS` tells more.",
        )
    if code is grpc.StatusCode.UNAVAILABLE and not reason:
        return StartError(
            ExitCode.UNAVAILABLE,
            f"The {service} service does not answer: run `lodestone status`, then `lodestone up`.",
        )
    if len(fields) > 1:  # of several the message tells the first alone
        message = "; ".join(fields)
    suffix = f" ({reason})" if reason else ""
    return StartError(_REASONS.get(reason) or _CODES.get(code, ExitCode.FAILED), message + suffix)


def is_unavailable(error: grpc.RpcError) -> bool:
    """Tells whether the same call may succeed later."""
    call: Any = error
    return bool(call.code() is grpc.StatusCode.UNAVAILABLE)


def _details(call: Any) -> tuple[str, list[str]]:
    """The reason without its prefix, and what is wrong with which field."""
    trailing = {str(key): value for key, value in call.trailing_metadata() or ()}
    raw = trailing.get(_DETAILS_KEY)
    if not isinstance(raw, bytes):
        return "", []
    from google.rpc import error_details_pb2, status_pb2

    info, request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    reason, fields = "", []
    for detail in status_pb2.Status.FromString(raw).details:
        if detail.Unpack(info):
            reason = info.reason.removeprefix(_PREFIX)
        elif detail.Unpack(request):
            fields = [f"{item.field}: {item.description}" for item in request.field_violations]
    return reason, fields
