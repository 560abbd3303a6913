"""Resolves paths beneath a tree: the one door through which files are opened.

Nothing is checked and then opened: a descriptor is opened under rules that the kernel holds
(`openat2`), and what it is gets read from the descriptor. A kernel without `openat2` is served by a
walk with O_NOFOLLOW at each component, which follows no link at all.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Self

from services.io.errors import FileNotRegularError, PathOutsideTreeError, file_error
from services.io.model import Root, SymlinkPolicy

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_PATH_BYTES = 4096
MAX_NAME_BYTES = 255

_SYS_OPENAT2 = 437  # the same number on every architecture
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08
_RESOLVE_IN_ROOT = 0x10
_RACE_RETRIES = 128  # openat2 answers EAGAIN when a rename ran beside it
_READ_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_HOLD_FLAGS = os.O_PATH | os.O_CLOEXEC
_STEP_FLAGS = _HOLD_FLAGS | os.O_NOFOLLOW  # on the way: a link is held, not followed
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def check_path(path: str) -> None:
    """Raises PathOutsideTreeError unless `path` is relative, plain and short enough."""
    if not path or "\0" in path or path.startswith("/"):
        raise PathOutsideTreeError.at(path, "The path is empty, absolute or holds NUL.")
    try:
        raw = path.encode()
    except UnicodeEncodeError:
        raise PathOutsideTreeError.at(
            path.encode(errors="replace").decode(), "The path is not UTF-8."
        ) from None
    parts = raw.split(b"/")
    if len(raw) > MAX_PATH_BYTES or max(map(len, parts)) > MAX_NAME_BYTES:
        raise PathOutsideTreeError.at(path[:MAX_NAME_BYTES], "The path is too long.")
    if any(part in {b"", b".", b".."} for part in parts):
        raise PathOutsideTreeError.at(path, "The path holds an empty part, `.` or `..`.")


class Tree:
    """A folder beneath a root, held open; close it, or use it in a `with` statement.

    The file system's root confines nothing, so beneath it WITHIN_ROOT means within the tree.
    """

    def __init__(self, root: Root, directory: str = "", roots: Sequence[Root] = ()) -> None:
        """Opens the folder.

        Raises:
            PathNotFoundError: there is no such folder.
            PathOutsideTreeError: the folder leaves the root.
            FileUnreadableError: the operating system refuses access.
        """
        self.root = root
        self.directory = directory
        self._roots = roots or (root,)
        self._whole_system = root.path == "/"
        # The whole system holds devices, and opening some does something (a watchdog is armed).
        self._holds_first = self._whole_system or root.symlink_policy is SymlinkPolicy.ACROSS_ROOTS
        self._root_fd = open_root(root.path, directory)
        try:
            self.fd = self._open_folder()
        except BaseException:
            os.close(self._root_fd)
            raise
        self._start = self._way_in()

    def close(self) -> None:
        """Closes both descriptors."""
        os.close(self.fd)
        os.close(self._root_fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open_file(self, path: str) -> tuple[int, os.stat_result]:
        """Opens a regular file beneath the tree; the caller closes the descriptor.

        Raises:
            PathOutsideTreeError, PathNotFoundError, FileUnreadableError, FileNotRegularError.
        """
        check_path(path)
        try:
            fd = self._open_regular(path) if self._holds_first else self._open(path, _READ_FLAGS)
        except OSError as error:
            raise file_error(error, path) from None
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise FileNotRegularError.at(path, "Not a regular file.")  # noqa: TRY301 - fd
        except BaseException:
            os.close(fd)
            raise
        return fd, status

    def open_link(self, path: str) -> int:
        """Opens what a symbolic link leads to with O_PATH, as far as the policy follows it.

        Raises:
            OSError: the policy does not follow it, or it leads nowhere.
        """
        if self.root.symlink_policy is SymlinkPolicy.DENY:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        return self._hold(path)

    def open_parent(self, path: str, *, follow: bool = True) -> tuple[int, str]:
        """Opens the folder of a path's last part; returns it and that part's name.

        The caller closes the descriptor, and must not follow a link under that name. With `follow`
        a link as the last part is followed as far as the policy says: folder and name are those of
        what it leads to.

        Raises:
            PathOutsideTreeError, PathNotFoundError, FileUnreadableError, FileNotRegularError.
        """
        check_path(path)
        folder, _, name = path.rpartition("/")
        try:
            fd = self._open_inner_folder(folder) if folder else os.dup(self.fd)
            if follow and _is_link(fd, name):
                os.close(fd)
                return self._open_parent_of_target(path)
        except OSError as error:
            raise file_error(error, path) from None
        return fd, name

    def _open_inner_folder(self, path: str) -> int:
        if self.root.symlink_policy is not SymlinkPolicy.ACROSS_ROOTS:
            return self._open(path, _FOLDER_FLAGS)
        held = self._hold(path)
        try:
            return os.open(f"/proc/self/fd/{held}", _FOLDER_FLAGS)
        finally:
            os.close(held)

    def _open_parent_of_target(self, path: str) -> tuple[int, str]:
        """As `open_parent`, for what the link at `path` leads to.

        Where that lies is asked once it is held; the way there is then gone again beneath the
        root, through no link, and has to end at the same file.
        """
        held = self.open_link(path)
        try:
            real, status = real_path(held), os.fstat(held)
        finally:
            os.close(held)
        base_fd, base = self._open_base(real)
        try:
            folder, _, name = os.path.relpath(real, base).rpartition("/")
            resolve = _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS
            fd = _open_at(base_fd, folder or ".", _FOLDER_FLAGS, resolve)
        finally:
            os.close(base_fd)
        try:
            found = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if (found.st_dev, found.st_ino) != (status.st_dev, status.st_ino):
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))  # noqa: TRY301 - fd
        except BaseException:
            os.close(fd)
            raise
        return fd, name

    def _open_base(self, real: str) -> tuple[int, str]:
        """Opens the folder that the policy allows to hold `real`; returns it and its path."""
        if self.root.symlink_policy is SymlinkPolicy.ACROSS_ROOTS:
            base = next((root.path for root in self._roots if is_beneath(real, root.path)), None)
            if base is None:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            return os.open(base, _FOLDER_FLAGS), base
        fd = self.fd if self._whole_system else self._root_fd
        return os.dup(fd), real_path(fd)

    def is_read_only(self, folder_fd: int) -> bool:
        """Tells whether a folder may not be written to: by this root, or by that in which it lies.

        Links and nested roots lead into other roots: the innermost root around the folder counts.
        """
        real = real_path(folder_fd)
        around = [root for root in self._roots if is_beneath(real, root.path)]
        innermost = max(around, key=lambda root: len(root.path), default=self.root)
        return self.root.read_only or innermost.read_only

    def real_path(self) -> str:
        """Returns where the tree lies, free of links."""
        return real_path(self.fd)

    def _open_folder(self) -> int:
        if not self.directory:
            return os.dup(self._root_fd)
        check_path(self.directory)
        resolve = _RESOLVE_IN_ROOT if self._whole_system else _RESOLVE_BENEATH
        if self.root.symlink_policy is SymlinkPolicy.DENY and not self._whole_system:
            resolve |= _RESOLVE_NO_SYMLINKS
        try:
            return _open_at(self._root_fd, self.directory, _FOLDER_FLAGS, resolve)
        except OSError as error:
            raise file_error(error, self.directory) from None

    def _way_in(self) -> tuple[int, str, int]:
        """Returns where paths begin, what goes before them, and the kernel's rules for them."""
        match self.root.symlink_policy:
            case SymlinkPolicy.DENY:
                return self.fd, "", _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS
            case SymlinkPolicy.WITHIN_ROOT if self._whole_system or not self.directory:
                return self.fd, "", _RESOLVE_BENEATH
            case SymlinkPolicy.WITHIN_ROOT:
                return self._root_fd, f"{self.directory}/", _RESOLVE_BENEATH
            case SymlinkPolicy.ACROSS_ROOTS:
                return self.fd, "", 0

    def _open(self, path: str, flags: int) -> int:
        folder_fd, prefix, resolve = self._start
        return _open_at(folder_fd, prefix + path, flags, resolve)

    def _hold(self, path: str) -> int:
        """Opens with O_PATH, which touches nothing, what the policy lets a path lead to.

        Links across roots are followed without limits, then the kernel is asked where that is. The
        answer is about the very file that is held, so nobody can exchange it in between.
        """
        try:
            held = self._open(path, _HOLD_FLAGS)
        except OSError:
            if self.root.symlink_policy is SymlinkPolicy.ACROSS_ROOTS:
                # A link that leads out says so, whether or not there is something behind it.
                os.close(_open_at(self.fd, path, _HOLD_FLAGS, _RESOLVE_BENEATH))
            raise
        try:
            if self.root.symlink_policy is SymlinkPolicy.ACROSS_ROOTS:
                self._check_in_a_root(real_path(held))
        except BaseException:
            os.close(held)
            raise
        return held

    def _check_in_a_root(self, real: str) -> None:
        if not any(is_beneath(real, root.path) for root in self._roots):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    def _open_regular(self, path: str) -> int:
        """Opens a regular file, and nothing else even for a moment: it is held and looked at."""
        held = self._hold(path)
        try:
            mode = os.fstat(held).st_mode
            if stat.S_ISLNK(mode):  # the walk for old kernels holds a link itself
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            if not stat.S_ISREG(mode):
                raise FileNotRegularError.at(path, "Not a regular file.")
            return os.open(f"/proc/self/fd/{held}", _READ_FLAGS)
        finally:
            os.close(held)


def real_path(fd: int) -> str:
    """Returns the path of what a descriptor holds."""
    return str(Path(f"/proc/self/fd/{fd}").readlink())


def _is_link(folder_fd: int, name: str) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=folder_fd, follow_symlinks=False).st_mode)
    except OSError:
        return False  # whoever opens it is told


def resolved_path(path: str) -> str:
    """Returns an absolute path free of links, also where it does not exist."""
    # POSIX allows `//` at the start a meaning of its own, so Python keeps it; Linux has none.
    return "/" + os.path.realpath(path).lstrip("/")


def is_beneath(path: str, folder: str) -> bool:
    """Tells whether a path is a folder or lies in it; both are free of links."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def open_root(path: str, told: str) -> int:
    """Opens the folder of a root, whose path is free of links.

    A link on the way was put there after the root was named, and is not followed: whoever can
    write to a folder above would choose what the server may touch.

    Raises:
        FileError: as the operating system says, of the path that the caller `told`.
    """
    try:
        top = os.open("/", os.O_PATH | os.O_CLOEXEC)
        try:
            if path == "/":
                return os.open("/", _FOLDER_FLAGS)
            return _open_at(top, path.lstrip("/"), _FOLDER_FLAGS, _RESOLVE_NO_SYMLINKS)
        finally:
            os.close(top)
    except OSError as error:
        raise file_error(error, told) from None


_libc = ctypes.CDLL(None, use_errno=True)


@cache
def _how(flags: int, resolve: int) -> _OpenHow:
    """Returns the rules of an open; there are few, and making one takes as long as an `fstat`."""
    return _OpenHow(flags, 0, resolve)


def _open_at(folder_fd: int, path: str, flags: int, resolve: int) -> int:
    """Opens `path` from `folder_fd` under the kernel's rules; EINTR and lost races are tried again.

    Raises:
        OSError: as the kernel says; EXDEV when the path leaves the folder, ELOOP at a link.
    """
    how = _how(flags, resolve | _RESOLVE_NO_MAGICLINKS)
    raw = path.encode(errors="surrogateescape")
    for _ in range(_RACE_RETRIES):
        fd = _libc.syscall(_SYS_OPENAT2, folder_fd, raw, ctypes.byref(how), ctypes.sizeof(how))
        if fd >= 0:
            return int(fd)
        number = ctypes.get_errno()
        if number in {errno.ENOSYS, errno.EPERM}:
            # EPERM too: sandboxes answer it for calls that they do not know.
            return open_by_component(folder_fd, path, flags)
        if number not in {errno.EAGAIN, errno.EINTR}:
            raise OSError(number, os.strerror(number))
    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))


def open_by_component(folder_fd: int, path: str, flags: int) -> int:
    """Opens `path` one component after the other and follows no link: for kernels before 5.6.

    Raises:
        OSError: ELOOP at a link, else as the kernel says.
    """
    *folders, name = path.split("/")
    held = os.dup(folder_fd)
    try:
        for folder in folders:
            if folder == "..":
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            below = os.open(folder, _STEP_FLAGS, dir_fd=held)
            os.close(held)
            held = below
            if stat.S_ISLNK(os.fstat(held).st_mode):
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        return os.open(name, flags | os.O_NOFOLLOW, dir_fd=held)
    finally:
        os.close(held)
