"""Gives a file that replaces another its owner, group, mode and extended attributes.

Until the last step only the new file's owner may open it, and no step gives anybody else a right
that the old file did not give them.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from functools import reduce
from operator import and_

ACL = "system.posix_acl_access"
_OF_THE_BYTES = frozenset({"security.capability", "security.ima", "security.evm"})
"""Capabilities and signatures of a file's bytes: other bytes have none of them."""
_NO_SUPPORT = {errno.ENOTSUP, errno.EPERM, errno.EACCES, errno.ENODATA, errno.EINVAL}
_SET_IDS = stat.S_ISUID | stat.S_ISGID
_ACL_HEADER_BYTES, _ACL_ENTRY = 4, struct.Struct("<HHI")  # from linux/posix_acl_xattr.h
_OF_THE_OWNER = 0x01


def keep_attributes(old_fd: int, old: os.stat_result, fd: int) -> None:
    """Makes the file at `fd`, of mode 0600, what the one at `old_fd` is, content aside.

    Owner, group and attributes are kept as far as the process may set them, but not what belonged
    to the old bytes: capabilities, which any write takes away, and signatures. Without the owner,
    set-id bits go. Without the group or the ACL, everybody but the owner gets the rights that each
    group and user had: whom the old file named, or shut out, is now among others.

    Raises:
        OSError: the operating system refused what it should not have; `fd` is open to nobody more.
    """
    names = _attributes_of(old_fd) - _OF_THE_BYTES
    for name in _attributes_of(fd) - names - _OF_THE_BYTES:  # of the folder's default ACL above all
        _remove(fd, name)
    mode = stat.S_IMODE(old.st_mode)
    has_owner, has_group = _keep_owner(fd, old)
    if not (has_owner and has_group):
        # What ran with the rights of the old owner must not run with those of another one.
        mode &= ~_SET_IDS
    kept = {name for name in names if (name != ACL or has_group) and _copy(old_fd, fd, name)}
    if not has_group or (ACL in names and ACL not in kept):
        common = _common_rights(old_fd, mode)
        mode = mode & ~0o77 | common << 3 | common
    os.fchmod(fd, mode)  # after fchown, which clears bits, and the ACL, whose mask it sets


def _attributes_of(fd: int) -> set[str]:
    try:
        return set(os.listxattr(fd))
    except OSError:
        return set()  # the file system has none


def _remove(fd: int, name: str) -> None:
    try:
        os.removexattr(fd, name)
    except OSError as error:
        if name == ACL or error.errno not in _NO_SUPPORT:
            raise


def _keep_owner(fd: int, old: os.stat_result) -> tuple[bool, bool]:
    """Returns whether the owner could be kept, and whether the group could."""
    now = os.fstat(fd)
    if (now.st_uid, now.st_gid) == (old.st_uid, old.st_gid) or _chown(fd, old.st_uid, old.st_gid):
        return True, True
    # The owner of a file may give it to any group that he is a member of.
    has_group = now.st_gid == old.st_gid or _chown(fd, -1, old.st_gid)
    return now.st_uid == old.st_uid, has_group


def _chown(fd: int, uid: int, gid: int) -> bool:
    try:
        os.fchown(fd, uid, gid)
    except OSError as error:
        if error.errno not in _NO_SUPPORT:
            raise
        return False
    return True


def _copy(old_fd: int, fd: int, name: str) -> bool:
    try:
        os.setxattr(fd, name, os.getxattr(old_fd, name))
    except OSError as error:
        if error.errno not in _NO_SUPPORT:
            raise
        return False
    return True


def _common_rights(old_fd: int, mode: int) -> int:
    """Returns the rights, as bits of `other`, that all had whom the mode or the ACL speaks of."""
    rights = mode >> 3 & mode & 0o7
    try:
        entries = _ACL_ENTRY.iter_unpack(os.getxattr(old_fd, ACL)[_ACL_HEADER_BYTES:])
    except OSError:
        return rights
    return reduce(and_, (right for tag, right, _ in entries if tag != _OF_THE_OWNER), rights)
