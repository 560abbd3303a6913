"""What can go wrong with a file, by its documented reason."""

from __future__ import annotations

import errno
from typing import Self

from services.runtime.errors import Code, LodestoneError, OverloadedError

DOMAIN = "io.lodestone"
RETRY_AFTER_SECONDS = 1.0

GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
"""What the system says of what is not there any more, or is something else now."""

NOT_FOLLOWED = GONE | {errno.EXDEV}
"""What the system says of a link that leads nowhere, or where the policy does not go. Where it says
anything else nothing is known of what lies behind the link: it is not gone."""


class FileError(LodestoneError):
    """An error about one file or folder, named by the path that the caller gave."""

    @classmethod
    def at(cls, path: str, message: str, **metadata: str) -> Self:
        """Returns the error of `path`, which is told in the metadata, not in the message."""
        return cls(message, metadata={"path": path, **metadata})


class PathOutsideTreeError(FileError):
    """The path leaves the tree, or is not a path."""

    reason = "ERROR_REASON_PATH_OUTSIDE_TREE"
    code = Code.INVALID_ARGUMENT


class PathNotFoundError(FileError):
    """The file or folder does not exist."""

    reason = "ERROR_REASON_FILE_NOT_FOUND"
    code = Code.NOT_FOUND


class FileUnreadableError(FileError):
    """The operating system refuses access."""

    reason = "ERROR_REASON_FILE_UNREADABLE"
    code = Code.PERMISSION_DENIED


class FileTooLargeError(FileError):
    """The file is larger than the limit."""

    reason = "ERROR_REASON_FILE_TOO_LARGE"
    code = Code.FAILED_PRECONDITION


class FileNotRegularError(FileError):
    """The path names a pipe, a socket, a device or a folder."""

    reason = "ERROR_REASON_FILE_NOT_REGULAR"
    code = Code.FAILED_PRECONDITION


class ContentChangedError(FileError):
    """The file does not hold the bytes that the caller named."""

    reason = "ERROR_REASON_CONTENT_CHANGED"
    code = Code.ABORTED


class InvalidUtf8Error(FileError):
    """The bytes are not valid UTF-8, or a range cuts a character."""

    reason = "ERROR_REASON_INVALID_UTF8"
    code = Code.INVALID_ARGUMENT


class RangeOutsideFileError(FileError):
    """The range ends after the file."""

    reason = "ERROR_REASON_RANGE_OUTSIDE_FILE"
    code = Code.OUT_OF_RANGE


class PathExistsError(FileError):
    """There is a file or folder of this path already."""

    reason = "ERROR_REASON_ALREADY_EXISTS"
    code = Code.ALREADY_EXISTS


class ReadOnlyError(FileError):
    """The deployment, the root or the file system is read-only."""

    reason = "ERROR_REASON_READ_ONLY"
    code = Code.FAILED_PRECONDITION


class DiskFullError(FileError):
    """The disk is full, or the quota used up; what was there is as it was."""

    reason = "ERROR_REASON_DISK_FULL"
    code = Code.RESOURCE_EXHAUSTED


class NotProvenDurableError(FileError):
    """A change is in place, and the operating system does not say that it is on the disk."""

    reason = "ERROR_REASON_DEPENDENCY_UNAVAILABLE"
    code = Code.UNAVAILABLE


class RequestIdReusedError(LodestoneError):
    """The same `request_id` came with a different request."""

    reason = "ERROR_REASON_REQUEST_ID_REUSED"
    code = Code.ALREADY_EXISTS


class ParseTimeoutError(FileError):
    """The file took more time than it may."""

    reason = "ERROR_REASON_TIMEOUT"
    code = Code.DEADLINE_EXCEEDED


class WorkerDiedError(FileError):
    """The worker process died on this file."""

    reason = "ERROR_REASON_WORKER_DIED"
    code = Code.INTERNAL


class WorkerStartError(LodestoneError):
    """No worker process stays alive, so nothing can be parsed."""

    reason = "ERROR_REASON_DEPENDENCY_UNAVAILABLE"
    code = Code.UNAVAILABLE


class StateFolderError(LodestoneError):
    """The folder for what outlasts a restart cannot be used; nothing changed."""

    reason = "ERROR_REASON_DEPENDENCY_UNAVAILABLE"
    code = Code.UNAVAILABLE

    def __init__(self, message: str, **metadata: str) -> None:
        super().__init__(
            message,
            metadata={"dependency": "state folder", **metadata},
            retry_after_seconds=RETRY_AFTER_SECONDS,
        )

    @classmethod
    def of(cls, error: OSError, what: str) -> Self:
        """Returns the error for what the operating system said; the folder is not told."""
        name = errno.errorcode.get(error.errno or 0, "unknown")
        return cls(f"The state folder {what} ({name}).", errno=name)


class ParseFailedError(FileError):
    """The parser raised an error on this file."""


def file_error(error: OSError, path: str) -> LodestoneError:
    """Returns our error for what the operating system said of `path`."""
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return PathNotFoundError.at(path, "The file or folder does not exist.")
        case errno.ELOOP | errno.EXDEV:
            return PathOutsideTreeError.at(
                path, "The path goes through a symbolic link that the policy does not follow."
            )
        case errno.ENAMETOOLONG:
            return PathOutsideTreeError.at(path, "The path is longer than the file system takes.")
        case errno.EMFILE | errno.ENFILE:
            return OverloadedError(
                "Too many files are open.",
                metadata={"limit": "open files"},
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
        case errno.ENOSPC | errno.EDQUOT:
            return DiskFullError.at(path, "The disk is full.", dependency="file system")
        case errno.EROFS:
            return ReadOnlyError.at(path, "The file system is read-only.")
        case errno.ENXIO | errno.EISDIR:
            return FileNotRegularError.at(path, "Not a regular file.")
        case _:
            name = errno.errorcode.get(error.errno or 0, "unknown")
            return FileUnreadableError.at(
                path, f"The operating system refuses access ({name}).", errno=name
            )
