"""Opens paths beneath a folder by rules that the kernel holds.

`openat2` where the kernel has it, else a walk with O_NOFOLLOW at each component, which follows no
link at all. With `CACHED` only what the kernel has in memory is opened: the caller does not block.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from functools import cache
from typing import Any

NO_XDEV = 0x01
NO_MAGICLINKS = 0x02
NO_SYMLINKS = 0x04
BENEATH = 0x08
IN_ROOT = 0x10
CACHED = 0x20

_SYS_OPENAT2 = 437  # the same number on every architecture
_RACE_RETRIES = 128  # openat2 answers EAGAIN when a rename ran beside it
_STEP_FLAGS = os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW  # on the way: a link is held, not followed
_IN_MEMORY_OR_LOCAL = frozenset(
    {
        0xEF53,  # ext2, ext3, ext4
        0x58465342,  # XFS
        0x9123683E,  # Btrfs
        0xF2F52010,  # F2FS
        0x01021994,  # tmpfs
        0x794C7630,  # overlayfs
    }
)

_NOT_AT_ONCE = frozenset(
    {errno.EAGAIN, errno.EINTR, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM}
)
"""Not in memory, a rename beside it, another file system, or an old kernel."""


class WouldWaitError(Exception):
    """What was asked for is not in memory, or may not be: ask again where waiting is allowed."""


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


class _StatFs(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_long), ("rest", ctypes.c_char * 512))


_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_fstatfs = _libc.fstatfs
_HOW_BYTES = ctypes.sizeof(_OpenHow)


@cache
def _how(flags: int, resolve: int) -> Any:
    """Returns a pointer to the rules of an open; there are few, and making one takes long."""
    return ctypes.byref(_OpenHow(flags, 0, resolve | NO_MAGICLINKS))


def open_at(folder_fd: int, path: str, flags: int, resolve: int) -> int:
    """Opens `path` from `folder_fd` under the kernel's rules; EINTR and lost races are tried again.

    Raises:
        OSError: as the kernel says; EXDEV when the path leaves the folder, ELOOP at a link.
        WouldWaitError: with `CACHED` alone, for whatever kept the kernel from telling at once.
    """
    how = _how(flags, resolve)
    raw = path.encode(errors="surrogateescape")
    for _ in range(_RACE_RETRIES):
        fd: int = _syscall(_SYS_OPENAT2, folder_fd, raw, how, _HOW_BYTES)
        if fd >= 0:
            return fd
        number = ctypes.get_errno()
        if resolve & CACHED and number in _NOT_AT_ONCE:
            raise WouldWaitError
        if number in {errno.ENOSYS, errno.EPERM}:
            # EPERM too: sandboxes answer it for calls that they do not know.
            return open_by_component(folder_fd, path, flags)
        if number not in {errno.EAGAIN, errno.EINTR}:
            raise OSError(number, os.strerror(number))
    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))


def open_by_component(folder_fd: int, path: str, flags: int) -> int:
    """Opens `path` one component after the other and follows no link: for kernels before 5.6.

    Raises:
        OSError: ELOOP at a link, EXDEV at a `..`, else as the kernel says.
    """
    *folders, name = path.split("/")
    if ".." in (*folders, name):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
    held = os.dup(folder_fd)
    try:
        for folder in folders:
            below = os.open(folder, _STEP_FLAGS, dir_fd=held)
            os.close(held)
            held = below
            if stat.S_ISLNK(os.fstat(held).st_mode):
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        return os.open(name, flags | os.O_NOFOLLOW, dir_fd=held)
    finally:
        os.close(held)


def answers_at_once(fd: int) -> bool:
    """Tells whether opening and asking about files here takes no network and no other process.

    NFS asks its server at each open, and FUSE a process, whatever is in memory.
    """
    told = _StatFs()
    if _fstatfs(fd, ctypes.byref(told)) != 0:
        return False
    return told.kind & 0xFFFFFFFF in _IN_MEMORY_OR_LOCAL
