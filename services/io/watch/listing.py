"""Lists one folder by the rules of a scan, so that a watch and a scan take the same files."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from services.io.beneath import open_by_component
from services.io.errors import GONE, NOT_FOLLOWED
from services.io.folders import list_folder, read_lines
from services.io.ignore import IGNORE_FILES, IgnoreRules, IgnoreStack
from services.io.names import JUNK_FOLDERS, VCS_FOLDERS
from services.io.parser.languages import TEXT
from services.io.paths import MAX_PATH_BYTES, real_path
from services.io.scanner import MAX_DEPTH, ScanRules
from services.io.watch.inotify import is_limit

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from services.io.paths import Tree
    from services.io.watch.folders import Folder

FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class WatchStopped(Exception):  # noqa: N818 - it is no error
    """The watch was ended while it looked through the tree."""


class Version(NamedTuple):
    """What tells whether a link leads elsewhere, or its target was written to.

    Also kept of files with several names, as a write under one is no event of the others.
    """

    device: int
    inode: int
    size: int
    mtime_ns: int
    is_folder: bool


UNKNOWN = Version(-1, -1, -1, -1, is_folder=False)
"""Stands for what a link leads to that cannot be looked at."""


@dataclass(slots=True)
class Listing:
    """What a folder holds that a scan takes."""

    ignores: IgnoreStack
    ignore_key: int
    is_nested: bool = False
    files: set[str] = field(default_factory=set)
    folders: list[tuple[str, bool]] = field(default_factory=list)
    """Names in the order of a scan, each with whether it is a link to a folder."""
    followed: dict[str, Version | None] = field(default_factory=dict)
    """Links, and files with several names: no event tells of all their changes."""
    unknown: set[str] = field(default_factory=set)
    """Files and links that cannot be looked at: they are neither there nor gone."""


class Lister:
    """Applies the rules of a scan to single folders and files."""

    def __init__(self, rules: ScanRules, is_stopped: Callable[[], bool]) -> None:
        self._rules = rules
        self._is_stopped = is_stopped

    def list(self, tree: Tree, fd: int, folder: Folder, above: IgnoreStack) -> Listing:
        """Lists an open folder; `above` are the ignore files that hold in its parent.

        Raises:
            OSError: the folder cannot be read.
            WatchStopped: the watch was ended meanwhile.
        """
        found = list_folder(fd)
        if found.is_repository and folder.parent is not None:
            return Listing(above, 0, is_nested=True)
        ignores, key = ignore_files(fd, folder.prefix, above, found.ignore_files)
        listing = Listing(ignores, key)
        for told in reversed(found.names):
            entry = found.entries[told]
            name = entry.name
            if told.endswith("/"):
                if self.walks(folder, ignores, name):
                    listing.folders.append((name, False))
            elif entry.is_symlink():
                self._add_link(tree, listing, folder, name)
            elif entry.is_file(follow_symlinks=False):
                self._add_file(listing, folder, name, entry)
        listing.folders.sort(key=_place_in_scan)  # links came as files do
        return listing

    def _add_link(self, tree: Tree, listing: Listing, folder: Folder, name: str) -> None:
        path = folder.prefix + name
        try:
            version = self.link(tree, path)
        except OSError as error:
            self._add_unknown(listing, folder, name, error)
            return
        listing.followed[name] = version
        if version is not None and version.is_folder:
            if self.walks(folder, listing.ignores, name):
                listing.folders.append((name, True))
        elif self.takes_link(name, version) and self.names(listing.ignores, path, name):
            listing.files.add(name)

    def _add_file(
        self, listing: Listing, folder: Folder, name: str, entry: os.DirEntry[str]
    ) -> None:
        if not self.names(listing.ignores, folder.prefix + name, name):
            return
        try:
            status = entry.stat(follow_symlinks=False)
        except OSError as error:
            if error.errno not in GONE:
                listing.unknown.add(name)
            return
        if self._fits(name, status.st_size):
            listing.files.add(name)
            if status.st_nlink > 1:
                listing.followed[name] = version_of(status)

    def _add_unknown(self, listing: Listing, folder: Folder, name: str, error: OSError) -> None:
        if is_limit(error):
            raise error
        path = folder.prefix + name
        if self.names(listing.ignores, path, name) or self.walks(folder, listing.ignores, name):
            listing.unknown.add(name)

    def walks(self, folder: Folder, ignores: IgnoreStack, name: str) -> bool:
        """Tells whether a scan walks a folder of this name beneath `folder`.

        Raises:
            WatchStopped: the watch was ended meanwhile.
        """
        self._go_on()
        path = folder.prefix + name
        return (
            name not in VCS_FOLDERS
            and name not in JUNK_FOLDERS
            and folder.depth + 1 < MAX_DEPTH
            and len(path.encode()) < MAX_PATH_BYTES
            and not ignores.ignores(name, path, is_folder=True)
        )

    def names(self, ignores: IgnoreStack, path: str, name: str) -> bool:
        """Tells whether the name of a file is one that a scan takes.

        Raises:
            WatchStopped: the watch was ended meanwhile.
        """
        self._go_on()
        return (
            self._rules.names.verdict(name)[0] is None
            and not (
                ignores.filter.may_match(name) and ignores.ignores(name, path, is_folder=False)
            )
            and (len(path) <= MAX_PATH_BYTES // 4 or len(path.encode()) <= MAX_PATH_BYTES)
        )

    def _go_on(self) -> None:
        """Ends a watch that is stopped: patterns may make a name take a second."""
        if self._is_stopped():
            raise WatchStopped

    def takes(self, name: str, status: os.stat_result) -> bool:
        """Tells whether a scan takes what a file of a taken name turned out to be."""
        return stat.S_ISREG(status.st_mode) and self._fits(name, status.st_size)

    def _fits(self, name: str, size: int) -> bool:
        rules = self._rules
        _, language = rules.names.verdict(name)
        return size <= rules.max_file_bytes and (
            language != TEXT or size <= rules.max_plain_text_bytes
        )

    def takes_link(self, name: str, version: Version | None) -> bool:
        """Tells whether a scan takes what a link of a taken name leads to."""
        return version is not None and not version.is_folder and self._fits(name, version.size)

    def link(self, tree: Tree, path: str) -> Version | None:
        """Returns what a link leads to when the policy follows it out of the tree, else None.

        Raises:
            OSError: it cannot be looked at, so that nothing is known of it.
        """
        try:
            held = tree.open_link(path)
        except OSError as error:
            if error.errno in NOT_FOLLOWED:
                return None
            raise
        try:
            status = os.fstat(held)
            top, real = f"{tree.real_path().rstrip('/')}/", f"{real_path(held)}/"
        finally:
            os.close(held)
        if real.startswith(top) or top.startswith(real):
            return None
        if not stat.S_ISDIR(status.st_mode) and not stat.S_ISREG(status.st_mode):
            return None
        return version_of(status)


def _place_in_scan(folder: tuple[str, bool]) -> str:
    return f"{folder[0]}/"


def version_of(status: os.stat_result) -> Version:
    """Returns the version of a file; of a folder, which one it is."""
    if stat.S_ISDIR(status.st_mode):
        return Version(status.st_dev, status.st_ino, 0, 0, is_folder=True)
    return Version(
        status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, is_folder=False
    )


def ignore_files(
    fd: int, prefix: str, above: IgnoreStack, names: Container[str] = IGNORE_FILES
) -> tuple[IgnoreStack, int]:
    """Returns the ignore files that hold in an open folder, and a key of what its own say.

    Raises:
        OSError: the system allows no more open files, so that nothing is known of them.
    """
    ignores, key = above, 0
    for name in IGNORE_FILES:
        if name not in names:
            continue
        try:
            lines = read_lines(fd, name)
        except OSError as error:
            if is_limit(error):
                raise
            continue
        key = hash((key, name, tuple(lines)))
        rules = IgnoreRules(lines)
        ignores = ignores.below(len(prefix), rules) if rules else ignores
    return ignores, key


def open_folder(tree: Tree, folder: Folder) -> int:
    """Opens a folder for reading; follows no link but those that the scan followed.

    Raises:
        OSError: it is not there any more, or may not be read.
    """
    parts: list[str] = []
    node: Folder = folder
    while node.parent is not None and not node.is_link:
        parts.append(node.name)
        node = node.parent
    start = os.dup(tree.fd) if node.parent is None else open_linked(tree, node.path)
    if not parts:
        return start
    try:
        return open_by_component(start, "/".join(reversed(parts)), FOLDER_FLAGS)
    finally:
        os.close(start)


def open_linked(tree: Tree, path: str) -> int:
    """Opens the folder that a link leads to, as far as the policy follows it.

    Raises:
        OSError: the policy does not follow it, or it is no folder.
    """
    held = tree.open_link(path)
    try:
        return os.open(f"/proc/self/fd/{held}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(held)
