"""Errors of the embed service, each with its documented reason."""

from __future__ import annotations

from services.runtime.errors import Code, DependencyUnavailableError, LodestoneError


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


class ModelNotLoadedError(LodestoneError):
    """The request names a model that this server does not serve."""

    reason = "ERROR_REASON_MODEL_NOT_LOADED"
    code = Code.NOT_FOUND

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} is not loaded.", metadata={"model": name})


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
