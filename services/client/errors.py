"""What a call can fail with: one root, with the reason that the service told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.runtime.status import read_rpc_error

if TYPE_CHECKING:
    from collections.abc import Mapping

    import grpc

_PREFIX = "ERROR_REASON_"


class CallError(Exception):
    """A call failed.

    `reason` is a value of `lodestone.error.v1.ErrorReason` without its prefix, such as
    `CONTENT_CHANGED`, or empty when no service answered; `code` is the name of the gRPC status.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(f"{message} ({reason or code})")
        self.message = message
        self.code = code
        self.reason = reason
        self.metadata = dict(metadata or {})
        """What the reason says with it; of an invalid call the fields, and what is wrong."""
        self.retry_after_seconds = retry_after_seconds
        """When the service says that the same call may succeed later."""


class NotFoundError(CallError):
    """There is no such workspace, run, or file in the index."""


class InvalidCallError(CallError):
    """An argument breaks a rule; `metadata` has the fields."""


class AccessError(CallError):
    """The caller's token does not allow it, or a file may not be read."""


class StateConflictError(CallError):
    """The state does not allow it, such as a search in what was never indexed."""


class UnavailableError(CallError):
    """The service, or one that it needs, does not answer."""


class OverloadedError(CallError):
    """The service sheds load or has reached a limit."""


class DeadlineError(CallError):
    """The call took more time than it was given."""


_CLASSES: Mapping[str, type[CallError]] = {
    "NOT_FOUND": NotFoundError,
    "INVALID_ARGUMENT": InvalidCallError,
    "OUT_OF_RANGE": InvalidCallError,
    "PERMISSION_DENIED": AccessError,
    "UNAUTHENTICATED": AccessError,
    "FAILED_PRECONDITION": StateConflictError,
    "UNAVAILABLE": UnavailableError,
    "RESOURCE_EXHAUSTED": OverloadedError,
    "DEADLINE_EXCEEDED": DeadlineError,
}


def call_error(error: grpc.RpcError) -> CallError:
    """Returns the exception of a failed call."""
    remote = read_rpc_error(error)
    found = _CLASSES.get(remote.code, CallError)
    return found(
        remote.message or remote.code,
        code=remote.code,
        reason=remote.reason.removeprefix(_PREFIX),
        metadata={**remote.metadata, **remote.fields},
        retry_after_seconds=remote.retry_after_seconds,
    )
