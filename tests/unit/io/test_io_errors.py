"""What the operating system says of a file is told by the documented reasons."""

from __future__ import annotations

import errno
import os

import pytest

from services.io.errors import file_error

PATH_OUTSIDE, NOT_FOUND, UNREADABLE = "PATH_OUTSIDE_TREE", "FILE_NOT_FOUND", "FILE_UNREADABLE"
REASONS = {
    errno.ENOENT: NOT_FOUND, errno.ENOTDIR: NOT_FOUND,
    errno.ELOOP: PATH_OUTSIDE, errno.EXDEV: PATH_OUTSIDE, errno.ENAMETOOLONG: PATH_OUTSIDE,
    errno.EMFILE: "OVERLOADED", errno.ENFILE: "OVERLOADED",
    errno.ENOSPC: "DISK_FULL", errno.EDQUOT: "DISK_FULL", errno.EROFS: "READ_ONLY",
    errno.ENXIO: "FILE_NOT_REGULAR", errno.EISDIR: "FILE_NOT_REGULAR",
    errno.EACCES: UNREADABLE, errno.EPERM: UNREADABLE, errno.EIO: UNREADABLE,
    errno.ESTALE: UNREADABLE, 0: UNREADABLE,
}  # fmt: skip


@pytest.mark.parametrize("number", sorted(REASONS))
def test_each_refusal_has_its_reason_and_names_no_folder_of_the_server(number: int) -> None:
    """Red when one falls to another reason, or the system's own text with its path is told."""
    error = file_error(OSError(number, os.strerror(number), "/srv/secret/a.py"), "a.py")
    assert error.reason == f"ERROR_REASON_{REASONS[number]}"
    assert "/srv" not in f"{error.message} {error.metadata}"
    assert (error.retry_after_seconds is not None) == (REASONS[number] == "OVERLOADED")
