"""Opens what a write goes to: a folder and a name in it, and the file of that name, locked.

The lock is on the file itself (`flock`), so it holds between threads, processes and containers that
share the tree, and leaves nothing behind. A write replaces the file: whoever gets the lock of one
that is no longer in place opens it again.
"""

from __future__ import annotations

import os
import stat
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from services.io.content import file_digest
from services.io.errors import (
    FileNotRegularError,
    FileUnreadableError,
    PathOutsideTreeError,
    ReadOnlyError,
)
from services.io.names import is_temporary
from services.io.reading import read_to_end
from services.io.splice import check_size
from services.io.temporaries import same_file, try_lock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services.io.paths import Tree

_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_RECENT_NS = 2_000_000_000
"""A file that was touched this shortly before may be touched again within one tick of its file
system's clock: its bytes are then compared, as its times prove nothing."""


@dataclass(frozen=True, slots=True)
class Place:
    """A name in an open folder that may be written to; `path` is what the caller calls it."""

    folder_fd: int
    name: str
    path: str


@dataclass(frozen=True, slots=True)
class Target:
    """A regular file, open and locked, and what `fstat` said before it was read."""

    place: Place
    fd: int
    status: os.stat_result


@contextmanager
def opened_place(tree: Tree, path: str, *, follow: bool = True) -> Iterator[Place]:
    """Opens the folder that holds a file, or that will.

    Raises:
        ReadOnlyError: the root in which it lies is read-only.
        FileError: the path leads out of the tree, or nowhere.
    """
    folder_fd, name = tree.open_parent(path, follow=follow)
    try:
        if is_temporary(name):
            raise PathOutsideTreeError.at(path, "The name is one of the server's temporary files.")
        if tree.is_read_only(folder_fd):
            raise ReadOnlyError.at(path, "The root is read-only.")
        if os.fstatvfs(folder_fd).f_flag & os.ST_RDONLY:
            raise ReadOnlyError.at(path, "The file system is read-only.")
        yield Place(folder_fd, name, path)
    finally:
        os.close(folder_fd)


@contextmanager
def opened_target(place: Place) -> Iterator[Target]:
    """Opens the file at a place, without its lock.

    Raises:
        FileNotFoundError: there is none.
        OSError: as the operating system says.
        FileNotRegularError: it is a folder, a pipe, a socket or a device.
        FileUnreadableError: it may not be written to.
    """
    with ExitStack() as opened:
        fd = os.open(place.name, _FILE_FLAGS, dir_fd=place.folder_fd)
        opened.callback(os.close, fd)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise FileNotRegularError.at(place.path, "Not a regular file.")
        if not os.access(f"/proc/self/fd/{fd}", os.W_OK, effective_ids=True):
            raise FileUnreadableError.at(place.path, "The file may not be written to.")
        yield Target(place, fd, status)


@contextmanager
def locked_target(place: Place) -> Iterator[Target | None]:
    """As `opened_target`, with the lock; None when somebody else holds it just now."""
    with opened_target(place) as target:
        # What the lock is for has to be the file that is in place now that the lock is held.
        is_held = try_lock(target.fd) and same_file(target.status, _status_of(place))
        yield replace(target, status=os.fstat(target.fd)) if is_held else None


def read_target(target: Target, max_bytes: int) -> bytes:
    """Returns the bytes of a target.

    Raises:
        FileTooLargeError: it has more than the limit.
    """
    data = read_to_end(target.fd, target.status.st_size, max_bytes)
    check_size(target.place.path, max(len(data), target.status.st_size), max_bytes)
    return data


def is_unchanged(target: Target, digest: bytes) -> bool:
    """Tells whether a target is still in place and holds what was read from it.

    This is for those who know no lock, such as editors, and is asked directly before the rename.
    """
    try:
        now = _status_of(target.place)
    except FileNotFoundError:
        return False
    then = target.status
    if not same_file(now, then) or _times(now) != _times(then):
        return False
    if time.time_ns() - max(then.st_ctime_ns, then.st_mtime_ns) > _RECENT_NS:
        return True
    return file_digest(read_to_end(target.fd, then.st_size, then.st_size)) == digest


def is_there(place: Place) -> bool:
    """Tells whether a place is taken, by whatever it is."""
    try:
        _status_of(place)
    except FileNotFoundError:
        return False
    return True


def _times(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _status_of(place: Place) -> os.stat_result:
    return os.stat(place.name, dir_fd=place.folder_fd, follow_symlinks=False)
