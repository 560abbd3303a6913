"""The kernel's inotify: one instance, its watches, and the events that it reads."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

MODIFY = 0x2
ATTRIB = 0x4
CLOSE_WRITE = 0x8
MOVED_FROM = 0x40
MOVED_TO = 0x80
CREATE = 0x100
DELETE = 0x200
DELETE_SELF = 0x400
MOVE_SELF = 0x800
UNMOUNT = 0x2000
Q_OVERFLOW = 0x4000
IGNORED = 0x8000
ISDIR = 0x4000_0000
"""Bits of an event, as `inotify(7)` names them; plain numbers, as millions are tested."""

_ONLYDIR = 0x100_0000
_EXCL_UNLINK = 0x400_0000
_WATCHED = (
    MODIFY
    | ATTRIB
    | CLOSE_WRITE  # a write through a mapping shows here alone
    | MOVED_FROM
    | MOVED_TO
    | CREATE
    | DELETE
    | DELETE_SELF
    | MOVE_SELF
    | _ONLYDIR
    | _EXCL_UNLINK
)
_HEADER = struct.Struct("iIII")
_READ_BYTES = 1 << 16
_libc = ctypes.CDLL(None, use_errno=True)


class RawEvent(NamedTuple):
    """An event of the kernel: the watch, what happened, what joins two halves of a rename."""

    wd: int
    mask: int
    cookie: int
    name: bytes


class Inotify:
    """One inotify instance; its methods may be called from any thread."""

    def __init__(self) -> None:
        """Makes the instance.

        Raises:
            OSError: EMFILE when this user has `fs.inotify.max_user_instances` of them.
        """
        self.fd = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))

    def add(self, folder_fd: int) -> int:
        """Watches a folder that is held open, and returns the watch: one per inode, ever the same.

        Raises:
            OSError: ENOSPC when this user has `fs.inotify.max_user_watches` of them.
        """
        # By the descriptor, not by a path that somebody may exchange meanwhile.
        path = f"/proc/self/fd/{folder_fd}".encode()
        return _checked(_libc.inotify_add_watch(self.fd, path, _WATCHED))

    def remove(self, wd: int) -> None:
        """Ends a watch; one that the kernel ended already is no error."""
        _libc.inotify_rm_watch(self.fd, wd)

    def read(self) -> bytes:
        """Returns what the kernel has now, at most 64 KiB; empty when it has nothing."""
        try:
            return os.read(self.fd, _READ_BYTES)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        """Ends all watches."""
        os.close(self.fd)


def parse(data: bytes) -> Iterator[RawEvent]:
    """Yields the events of one read."""
    position = 0
    while position < len(data):
        wd, mask, cookie, length = _HEADER.unpack_from(data, position)
        start = position + _HEADER.size
        position = start + length
        yield RawEvent(wd, mask, cookie, data[start:position].rstrip(b"\0"))


def overflow() -> bytes:
    """Returns what the kernel writes when its queue was full, for a queue of our own."""
    return _HEADER.pack(-1, Q_OVERFLOW, 0, 0)


def is_limit(error: OSError) -> bool:
    """Tells whether the system allows no more of something, as against this one folder."""
    return error.errno in {errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSYS}


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
