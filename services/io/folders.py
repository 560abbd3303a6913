"""Lists one folder: its entries in the order of the walk, and the ignore files in it."""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from services.io.ignore import IGNORE_FILES, MAX_IGNORE_FILE_BYTES

REPOSITORY = ".git"

_TELLING = frozenset({*IGNORE_FILES, REPOSITORY, f"{REPOSITORY}/"})
_BYTE_ORDER_MARK = "\ufeff"
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Listing(NamedTuple):
    """What a folder holds."""

    names: list[str]
    """Last first, so that the walk takes them from the end. The name of a folder ends in `/`, as a
    path beneath it goes on."""
    entries: dict[str, os.DirEntry[str]]
    """What each of them names."""
    ignore_files: list[str]
    """Names of ignore files, those that go before others last."""
    unnamed_count: int
    """Entries left out as their names are not UTF-8."""
    is_repository: bool


def list_folder(fd: int) -> Listing:
    """Returns what an open folder holds; the caller keeps the descriptor.

    Names of Python compare by code point, which is the order of their UTF-8 bytes.

    Raises:
        OSError: the folder cannot be read.
    """
    with os.scandir(fd) as found:
        entries = {
            f"{entry.name}/" if entry.is_dir(follow_symlinks=False) else entry.name: entry
            for entry in found
        }
    names = sorted(entries, reverse=True)
    unnamed = 0
    if not "".join(names).isascii():
        names = [name for name in names if _is_utf8(name)]
        unnamed = len(entries) - len(names)
    if _TELLING.isdisjoint(entries):
        return Listing(names, entries, [], unnamed, is_repository=False)
    ignore_files = [name for name in IGNORE_FILES if name in entries]
    is_repository = REPOSITORY in entries or f"{REPOSITORY}/" in entries
    return Listing(names, entries, ignore_files, unnamed, is_repository)


def read_lines(folder_fd: int, name: str) -> list[str]:
    """Returns the lines of an ignore file, none for what is no regular file.

    As in git, a link is not followed, a byte order mark is no part of the first line, and a
    carriage return before its end none of any.

    Raises:
        OSError: the file cannot be read.
    """
    if stat.S_ISLNK(os.stat(name, dir_fd=folder_fd, follow_symlinks=False).st_mode):
        return []
    fd = os.open(name, _FILE_FLAGS, dir_fd=folder_fd)
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return []
        raw = file.read(MAX_IGNORE_FILE_BYTES + 1)
        if len(raw) > MAX_IGNORE_FILE_BYTES:
            raw = raw[: raw.rfind(b"\n") + 1]  # half a pattern may match anything
        text = raw.decode(errors="surrogateescape")
        lines = text.removeprefix(_BYTE_ORDER_MARK).split("\n")
        return [line.removesuffix("\r") for line in lines]


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
