"""What can go wrong in the indexer, as callers are told it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.runtime.errors import Code, DependencyUnavailableError, LodestoneError

if TYPE_CHECKING:
    from services.indexer.model import Failure


DATABASE = "postgresql"
"""How the database is called where an error names what does not answer."""


class DatabaseUnavailableError(DependencyUnavailableError):
    """The database does not answer: it is one for all replicas."""

    everywhere = True


class DiskFullError(LodestoneError):
    """The database has no room."""

    reason = "ERROR_REASON_DISK_FULL"
    code = Code.RESOURCE_EXHAUSTED


DATABASE_FAILURES = (DependencyUnavailableError, DiskFullError)
"""What whoever works for himself waits for: the database does not answer, or has no room."""


class RunOwnershipLostError(LodestoneError):
    """Another replica owns the run now: this one stops without a trace."""

    reason = "ERROR_REASON_LEASE_LOST"
    code = Code.ABORTED


class RequestIdReusedError(LodestoneError):
    """A request id came again with another request."""

    reason = "ERROR_REASON_REQUEST_ID_REUSED"
    code = Code.ALREADY_EXISTS


class PathOutsideTreeError(LodestoneError):
    """A path of a request leads out of the tree, or is none."""

    reason = "ERROR_REASON_PATH_OUTSIDE_TREE"
    code = Code.INVALID_ARGUMENT


class LeaseLostError(LodestoneError):
    """The lease that a caller names is over, or another's."""

    reason = "ERROR_REASON_LEASE_LOST"
    code = Code.ABORTED


class TreeUnavailableError(LodestoneError):
    """The workspace's folder cannot be scanned or read."""

    reason = "ERROR_REASON_FILE_NOT_FOUND"
    code = Code.FAILED_PRECONDITION


class PayloadMismatchError(LodestoneError):
    """A service answered with something that was not asked for; nothing of it is written."""

    reason = "ERROR_REASON_INTERNAL"
    code = Code.INTERNAL


class BatchRefusedError(LodestoneError):
    """A call with several texts failed as a whole; what is wrong with which is not known."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class ModelNotLoadedError(LodestoneError):
    """The embed service serves no such model."""

    reason = "ERROR_REASON_MODEL_NOT_LOADED"
    code = Code.NOT_FOUND


class RerankRefusedError(LodestoneError):
    """The embed service has no such reranker, or refuses to score; no caller is told."""

    reason = "ERROR_REASON_STATE_CONFLICT"
    code = Code.FAILED_PRECONDITION


class FileGoneError(LodestoneError):
    """An indexed file does not exist any more."""

    reason = "ERROR_REASON_FILE_NOT_FOUND"
    code = Code.NOT_FOUND


class FileChangingError(LodestoneError):
    """A file was written to at each look at it."""

    reason = "ERROR_REASON_CONTENT_CHANGED"
    code = Code.ABORTED


class UnreadableFileError(LodestoneError):
    """A file cannot be read: its rights, its length or its bytes do not allow it."""

    reason = "ERROR_REASON_FILE_UNREADABLE"
    code = Code.PERMISSION_DENIED
