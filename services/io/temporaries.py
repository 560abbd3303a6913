"""The files that a write fills before it puts them in place, and what dead processes left of them.

Whoever makes a temporary file holds a lock on it (`flock`) until it is renamed or removed. So one
that can be locked has no owner any more, whatever process, container or replica made it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
import threading
from collections import OrderedDict
from itertools import islice
from typing import NamedTuple

from services.io import metrics
from services.io.names import is_temporary, temporary_name

MAX_LISTED = 100_000
"""Most entries of one folder that are looked at for left-over files."""

MAX_MET = 10_000
"""Most folders that are remembered as swept; the oldest are swept again."""

_CREATE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LOOK_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_TRIES = 16


class Temporary(NamedTuple):
    """A temporary file: its name in its folder, and a descriptor that holds its lock."""

    name: str
    fd: int


def create_temporary(folder_fd: int, mode: int) -> Temporary:
    """Creates an empty temporary file in a folder and locks it; the caller closes it.

    Raises:
        OSError: as the operating system says.
    """
    for _ in range(_TRIES):
        name = temporary_name(secrets.token_hex(16))
        fd = os.open(name, _CREATE_FLAGS, mode, dir_fd=folder_fd)
        try:
            # A sweep may have come between: then the file is locked, or gone already.
            if try_lock(fd) and os.fstat(fd).st_nlink:
                return Temporary(name, fd)
        except BaseException:
            os.close(fd)
            os.unlink(name, dir_fd=folder_fd)
            raise
        os.close(fd)
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))


def try_lock(fd: int, *, where_none: bool = True) -> bool:
    """Locks an open file; returns whether it did, or `where_none` where there are no locks.

    The lock is held until `fd` is closed. Where a file system has none, a write goes on with the
    check before its rename alone.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in {errno.ENOLCK, errno.ENOTSUP, errno.EBADF, errno.EINVAL}:
            raise
        return where_none
    return True


class Sweeper:
    """Sweeps each folder that is written to once in a process's life; for any thread."""

    def __init__(self) -> None:
        self._met: OrderedDict[tuple[int, int], None] = OrderedDict()
        self._lock = threading.Lock()

    def meet(self, folder_fd: int) -> None:
        """Removes what dead processes left in a folder, when it is met for the first time."""
        status = os.fstat(folder_fd)
        with self._lock:
            if (status.st_dev, status.st_ino) in self._met:
                return
            self._met[(status.st_dev, status.st_ino)] = None
            if len(self._met) > MAX_MET:
                self._met.popitem(last=False)
        metrics.TEMPORARY_FILES_SWEPT.inc(sweep_folder(folder_fd))


def sweep_folder(folder_fd: int) -> int:
    """Removes the temporary files in a folder that no process holds; returns how many.

    What may not be listed or removed stays, and is met again by the next sweep.
    """
    try:
        with os.scandir(folder_fd) as entries:
            names = [e.name for e in islice(entries, MAX_LISTED) if is_temporary(e.name)]
    except OSError:
        return 0
    return sum(_remove_if_dead(folder_fd, name) for name in names)


def _remove_if_dead(folder_fd: int, name: str) -> bool:
    try:
        fd = os.open(name, _LOOK_FLAGS, dir_fd=folder_fd)
    except OSError:
        return False
    try:
        held = os.fstat(fd)
        if not stat.S_ISREG(held.st_mode) or not try_lock(fd, where_none=False):
            return False
        if not same_file(held, os.stat(name, dir_fd=folder_fd, follow_symlinks=False)):
            return False
        os.unlink(name, dir_fd=folder_fd)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def same_file(one: os.stat_result, other: os.stat_result) -> bool:
    """Tells whether two answers of `stat` are about one inode."""
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
