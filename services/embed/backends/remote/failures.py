"""How a request to a provider can fail, and who is to blame."""

from __future__ import annotations

from enum import StrEnum
from http import HTTPStatus


class FailureKind(StrEnum):
    """What went wrong with one request; also its label in metrics."""

    REFUSED = "refused"
    THROTTLED = "throttled"
    DENIED = "denied"
    UNREACHABLE = "unreachable"
    UNAVAILABLE = "unavailable"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CUT_OFF = "cut_off"
    MALFORMED = "malformed"

    @property
    def passes(self) -> bool:
        """Whether the same request may go well a moment later."""
        return self not in {FailureKind.REFUSED, FailureKind.DENIED}

    @property
    def may_be_the_texts(self) -> bool:
        """Whether the provider may be well, and fails on what it was sent."""
        return self in {
            FailureKind.FAILED,
            FailureKind.TIMED_OUT,
            FailureKind.CUT_OFF,
            FailureKind.MALFORMED,
        }


class CallFailedError(Exception):
    """One request failed; the message names the kind alone."""

    def __init__(self, kind: FailureKind, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(str(kind))
        self.kind = kind
        self.retry_after_seconds = retry_after_seconds


_OF_STATUS = {
    HTTPStatus.BAD_REQUEST: FailureKind.REFUSED,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: FailureKind.REFUSED,
    HTTPStatus.UNPROCESSABLE_ENTITY: FailureKind.REFUSED,
    HTTPStatus.REQUEST_TIMEOUT: FailureKind.TIMED_OUT,
    HTTPStatus.TOO_MANY_REQUESTS: FailureKind.THROTTLED,
    HTTPStatus.INTERNAL_SERVER_ERROR: FailureKind.FAILED,
}


def kind_of_status(status: int) -> FailureKind:
    """Returns what a status other than 200 means.

    Other 5xx come from what stands before the model, and say nothing about the texts. Others (no
    or a wrong key, no such model, a redirect) need somebody to change the settings.
    """
    known = _OF_STATUS.get(HTTPStatus(status)) if status in set(HTTPStatus) else None
    if known is not None:
        return known
    return FailureKind.UNAVAILABLE if status >= 500 else FailureKind.DENIED
