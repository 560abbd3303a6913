"""Resolves paths beneath a tree: the one door for the paths of callers, and for links.

Nothing is checked and then opened: a descriptor is opened under rules that the kernel holds, and
what it is gets read from the descriptor.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Self

from services.io.beneath import (
    BENEATH,
    CACHED,
    IN_ROOT,
    NO_SYMLINKS,
    NO_XDEV,
    WouldWaitError,
    answers_at_once,
    open_at,
)
from services.io.errors import FileNotRegularError, PathOutsideTreeError, file_error
from services.io.model import Root, SymlinkPolicy

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_PATH_BYTES = 4096
MAX_NAME_BYTES = 255

_READ_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_HOLD_FLAGS = os.O_PATH | os.O_CLOEXEC
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def check_path(path: str) -> None:
    """Raises PathOutsideTreeError unless `path` is relative, plain and short enough."""
    # Nearly every path, told to be fine in a sixth of the time that looking at its parts takes.
    if (
        0 < len(path) <= MAX_NAME_BYTES
        and path.isascii()
        and path[0] not in "/."
        and path[-1] != "/"
        and "/." not in path
        and "//" not in path
        and "\0" not in path
    ):
        return
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

    One that does not wait opens only what is in memory, on a file system that asks nobody, and
    raises WouldWaitError for all else: it may be used where nothing may block.
    """

    def __init__(
        self, root: Root, directory: str = "", roots: Sequence[Root] = (), *, waits: bool = True
    ) -> None:
        """Opens the folder.

        Raises:
            PathNotFoundError: there is no such folder.
            PathOutsideTreeError: the folder leaves the root.
            FileUnreadableError: the operating system refuses access.
            WouldWaitError: with `waits` false alone.
        """
        self.root = root
        self.waits = waits
        self.directory = directory
        self._roots = roots or (root,)
        self._whole_system = root.path == "/"
        # The whole system holds devices, and opening some does something (a watchdog is armed).
        self._holds_first = self._whole_system or root.symlink_policy is SymlinkPolicy.ACROSS_ROOTS
        self._at_once = 0 if waits else CACHED | NO_XDEV
        if self._holds_first and not waits:
            raise WouldWaitError
        self._root_fd = open_root(root.path, directory, waits=waits)
        try:
            if not waits and not answers_at_once(self._root_fd):
                raise WouldWaitError  # noqa: TRY301 - fd
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
            resolve = BENEATH | NO_SYMLINKS
            fd = open_at(base_fd, folder or ".", _FOLDER_FLAGS, resolve)
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
        root = self._innermost_root(real_path(folder_fd))
        return self.root.read_only or (root or self.root).read_only

    def linked_folder(self, folder_fd: int, path: str) -> tuple[str, str] | None:
        """Returns root and path of a file's open folder, None where it is that of the file's path.

        Links lead elsewhere: the folder then has no name beneath the tree, or another one.
        """
        real = real_path(folder_fd)
        told = f"{self.real_path().rstrip('/')}/{path}".rpartition("/")[0] or "/"
        root = self._innermost_root(real)
        if root is None or real == told:
            return None
        return root.id, real[len(root.path) :].lstrip("/")

    def _innermost_root(self, real: str) -> Root | None:
        around = [root for root in self._roots if is_beneath(real, root.path)]
        return max(around, key=lambda root: len(root.path), default=None)

    def real_path(self) -> str:
        """Returns where the tree lies, free of links."""
        return real_path(self.fd)

    def _open_folder(self) -> int:
        if self.directory:
            check_path(self.directory)
        resolve = IN_ROOT if self._whole_system else BENEATH
        if self.root.symlink_policy is SymlinkPolicy.DENY and not self._whole_system:
            resolve |= NO_SYMLINKS
        try:
            if not self.directory:
                return os.dup(self._root_fd)
            return open_at(self._root_fd, self.directory, _FOLDER_FLAGS, resolve | self._at_once)
        except OSError as error:
            raise file_error(error, self.directory) from None

    def _way_in(self) -> tuple[int, str, int]:
        """Returns where paths begin, what goes before them, and the kernel's rules for them."""
        match self.root.symlink_policy:
            case SymlinkPolicy.DENY:
                return self.fd, "", BENEATH | NO_SYMLINKS
            case SymlinkPolicy.WITHIN_ROOT if self._whole_system or not self.directory:
                return self.fd, "", BENEATH
            case SymlinkPolicy.WITHIN_ROOT:
                return self._root_fd, f"{self.directory}/", BENEATH
            case SymlinkPolicy.ACROSS_ROOTS:
                return self.fd, "", 0

    def _open(self, path: str, flags: int) -> int:
        folder_fd, prefix, resolve = self._start
        return open_at(folder_fd, prefix + path, flags, resolve | self._at_once)

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
                os.close(open_at(self.fd, path, _HOLD_FLAGS, BENEATH))
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


def open_root(path: str, told: str, *, waits: bool = True) -> int:
    """Opens the folder of a root, whose path is free of links.

    A link on the way was put there after the root was named, and is not followed: whoever can
    write to a folder above would choose what the server may touch.

    Raises:
        FileError: as the operating system says, of the path that the caller `told`.
        WouldWaitError: with `waits` false alone.
    """
    try:
        top = os.open("/", os.O_PATH | os.O_CLOEXEC)
        try:
            if path == "/":
                return os.open("/", _FOLDER_FLAGS)
            resolve = NO_SYMLINKS if waits else NO_SYMLINKS | CACHED
            return open_at(top, path.lstrip("/"), _FOLDER_FLAGS, resolve)
        finally:
            os.close(top)
    except OSError as error:
        raise file_error(error, told) from None
