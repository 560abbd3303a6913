"""Errors of the embed service, each with its documented reason."""

from __future__ import annotations

from services.runtime.errors import Code, DependencyUnavailableError, LodestoneError

_AWAY_SECONDS = 2.0


class TextTooLongError(LodestoneError):
    """A text has more tokens than the model reads, and may not be cut."""

    reason = "ERROR_REASON_TEXT_TOO_LONG"
    code = Code.INVALID_ARGUMENT

    def __init__(self, *, tokens: int, limit: int) -> None:
        super().__init__(
            f"The text has at least {tokens} tokens; the model reads {limit}.",
            metadata={"tokens": str(tokens), "limit": str(limit)},
        )


class BadVectorError(LodestoneError):
    """The model raised on a text or answered with a vector that must not be stored."""

    reason = "ERROR_REASON_BAD_VECTOR"
    code = Code.INTERNAL


class TextEndsEngineError(LodestoneError):
    """The process that runs the model ends, or hangs, whenever it gets this text."""

    reason = "ERROR_REASON_WORKER_DIED"
    code = Code.INTERNAL

    def __init__(self, *, hung: bool) -> None:
        what = "hangs on" if hung else "ends whenever it gets"
        super().__init__(f"The process that runs the model {what} this text.")


class EngineAwayError(DependencyUnavailableError):
    """The process that runs the model is being rebuilt; nothing is wrong with the text."""

    def __init__(self) -> None:
        super().__init__(
            "The model is being loaded again.",
            metadata={"dependency": "engine"},
            retry_after_seconds=_AWAY_SECONDS,
        )


class ModelLoadingError(DependencyUnavailableError):
    """The request names a model that this server will serve once it is loaded."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name} is being loaded.",
            metadata={"dependency": "engine"},
            retry_after_seconds=_AWAY_SECONDS,
        )


class ModelNotLoadedError(LodestoneError):
    """The request names a model that this server does not serve."""

    reason = "ERROR_REASON_MODEL_NOT_LOADED"
    code = Code.NOT_FOUND

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} is not loaded.", metadata={"model": name})


class ModelLoadError(LodestoneError):
    """A model does not load; the message names no path and quotes no file."""

    reason = "ERROR_REASON_MODEL_LOAD_FAILED"
    code = Code.FAILED_PRECONDITION


class LimitReachedError(LodestoneError):
    """One more model would be more than this server may hold."""

    reason = "ERROR_REASON_LIMIT_REACHED"
    code = Code.RESOURCE_EXHAUSTED

    def __init__(self, message: str, *, resource: str, limit: int, needed: int) -> None:
        super().__init__(
            message,
            metadata={"resource": resource, "limit": str(limit), "needed": str(needed)},
        )


class ForbiddenError(LodestoneError):
    """The caller may not do this."""

    reason = "ERROR_REASON_FORBIDDEN"
    code = Code.PERMISSION_DENIED


class FingerprintMismatchError(LodestoneError):
    """The model's vectors would not be comparable with the caller's."""

    reason = "ERROR_REASON_FINGERPRINT_MISMATCH"
    code = Code.FAILED_PRECONDITION

    def __init__(self, *, expected: str, actual: str) -> None:
        super().__init__(
            "The model's fingerprint is not the expected one.",
            metadata={"expected": expected, "actual": actual},
        )


class RemoteModelUnavailableError(DependencyUnavailableError):
    """The provider of a remote model does not answer, or does not let this service in."""

    def __init__(self, message: str, *, retry_after_seconds: float) -> None:
        super().__init__(
            message,
            metadata={"dependency": "remote model"},
            retry_after_seconds=retry_after_seconds,
        )
