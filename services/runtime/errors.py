"""The one root of all errors that a service tells its callers."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Mapping


class Code(StrEnum):
    """Names of gRPC status codes, so that core modules need no grpc."""

    CANCELLED = "CANCELLED"
    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    ABORTED = "ABORTED"
    OUT_OF_RANGE = "OUT_OF_RANGE"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    INTERNAL = "INTERNAL"
    UNAVAILABLE = "UNAVAILABLE"
    UNAUTHENTICATED = "UNAUTHENTICATED"


class LodestoneError(Exception):
    """The root of errors with a documented reason.

    Subclasses live beside the code that raises them and set `reason` (a value of
    `lodestone.error.v1.ErrorReason`) and `code`. The message reaches callers: it names no absolute
    path and no content of a file.
    """

    reason: ClassVar[str] = "ERROR_REASON_INTERNAL"
    code: ClassVar[Code] = Code.INTERNAL
    everywhere: ClassVar[bool] = False
    """Whether every replica would answer so now: no other one is worth asking before the wait."""

    def __init__(
        self,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = dict(metadata or {})
        self.retry_after_seconds = retry_after_seconds


class InvalidRequestError(LodestoneError):
    """A field of a request breaks a rule; `metadata` maps fields to what is wrong with them."""

    reason = "ERROR_REASON_INVALID_REQUEST"
    code = Code.INVALID_ARGUMENT


class NotImplementedYetError(LodestoneError):
    """A method of the contract that this version does not build."""

    reason = "ERROR_REASON_NOT_IMPLEMENTED"
    code = Code.UNIMPLEMENTED


class NotFoundError(LodestoneError):
    """A named resource does not exist."""

    reason = "ERROR_REASON_NOT_FOUND"
    code = Code.NOT_FOUND


class AlreadyExistsError(LodestoneError):
    """A resource of that name exists and is another one."""

    reason = "ERROR_REASON_ALREADY_EXISTS"
    code = Code.ALREADY_EXISTS


class StateConflictError(LodestoneError):
    """The state of a resource does not allow this."""

    reason = "ERROR_REASON_STATE_CONFLICT"
    code = Code.FAILED_PRECONDITION


class ForbiddenError(LodestoneError):
    """The caller may not do this, whoever it is or says it is."""

    reason = "ERROR_REASON_FORBIDDEN"
    code = Code.PERMISSION_DENIED


class UnauthenticatedError(LodestoneError):
    """The caller has no identity that is accepted."""

    reason = "ERROR_REASON_UNAUTHENTICATED"
    code = Code.UNAUTHENTICATED


class PageTokenError(LodestoneError):
    """A page token was not issued for this request."""

    reason = "ERROR_REASON_PAGE_TOKEN_MISMATCH"
    code = Code.INVALID_ARGUMENT


class DependencyUnavailableError(LodestoneError):
    """A service or the database that this one needs does not answer."""

    reason = "ERROR_REASON_DEPENDENCY_UNAVAILABLE"
    code = Code.UNAVAILABLE


class OverloadedError(LodestoneError):
    """The server sheds load."""

    reason = "ERROR_REASON_OVERLOADED"
    code = Code.RESOURCE_EXHAUSTED


class ShuttingDownError(LodestoneError):
    """The server drains before it stops."""

    reason = "ERROR_REASON_SHUTTING_DOWN"
    code = Code.UNAVAILABLE
