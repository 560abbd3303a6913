"""Brings what is remembered of a tree in line with the disk, and sets the watches on the way.

A folder is watched before it is listed: what comes into it in between is in the list, in the
events, or in both.
"""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING

from services.io.errors import GONE
from services.io.ignore import IgnoreRules, IgnoreStack
from services.io.watch.folders import UNWATCHED, FileNames, Folder, Identity
from services.io.watch.inotify import is_limit
from services.io.watch.listing import (
    FOLDER_FLAGS,
    UNKNOWN,
    Lister,
    Listing,
    Version,
    WatchStopped,
    open_linked,
)
from services.io.watch.model import RescanCause

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from services.io.paths import Tree
    from services.io.scanner import ScanRules
    from services.io.watch.coalesce import Changes
    from services.io.watch.source import Source

_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM})

MAX_FOLLOWED = 10_000
"""Most links and names of files with several that are looked at again and again in one tree."""


class Walk:
    """The folders of one tree and their watches; for one thread.

    Differences to what was remembered are put into `changes`. `needs` has why callers must scan.
    """

    def __init__(
        self, source: Source, rules: ScanRules, changes: Changes, is_stopped: Callable[[], bool]
    ) -> None:
        self.lister = Lister(rules, is_stopped)
        self.top = Folder(None, "", _nothing_ignored())
        self.by_wd: dict[int, tuple[Folder, ...]] = {}
        """The folders of each watch; several where links or mounts lead to one folder twice."""
        self.followed: dict[str, Version | None] = {}
        self.needs: set[RescanCause] = set()
        self.is_limited = False
        """Whether the system does not let all folders be watched, or did not let one be opened."""
        self.is_following_all = True
        """Whether all links, files with several names and closed folders are followed."""
        self.closed: set[str] = set()
        """Paths of folders that may not be read: what was in them, or came, is not known."""
        self.opened: set[Folder] = set()
        """Folders whose names were asked for since they were packed."""
        self._source = source
        self._changes = changes
        self._is_stopped = is_stopped
        self._is_full = False
        self._walked_links: set[Identity] = set()
        self._followed_before: Mapping[str, Version | None] = {}

    def refresh_all(self, tree: Tree) -> None:
        """Compares the whole tree, links to folders included.

        Raises:
            OSError: the top cannot be read.
            WatchStopped: the watch was ended meanwhile.
        """
        self.is_limited = False
        self.is_following_all = True
        self._followed_before, self.followed = self.followed, {}
        self._walked_links.clear()
        if self._changes.is_muted:
            self.closed.clear()
        self._is_full = True
        try:
            self.refresh(tree, self.top, os.dup(tree.fd))
        finally:
            self._is_full = False
            self._keep_unknown()

    def refresh(self, tree: Tree, folder: Folder, fd: int) -> None:
        """Compares an open folder and all beneath it; closes `fd`.

        Raises:
            OSError: the folder cannot be read.
            WatchStopped: the watch was ended meanwhile.
        """
        try:
            if self._is_stopped():
                raise WatchStopped
            if not self._watch(folder, fd):
                self._forget_names(folder)
            above = folder.parent.ignores if folder.parent is not None else _nothing_ignored()
            listing = self.lister.list(tree, fd, folder, above)
            self._compare(folder, listing)
            for name, is_link in listing.folders:
                self.enter(tree, folder, name, fd, is_link=is_link)
        finally:
            os.close(fd)

    def enter(
        self, tree: Tree, parent: Folder, name: str, parent_fd: int, *, is_link: bool = False
    ) -> None:
        """Compares a folder beneath another, which is new or known, and all beneath it."""
        path = parent.prefix + name
        try:
            if is_link:
                fd = open_linked(tree, path)
                if not self._may_follow(parent, name, fd):
                    os.close(fd)
                    return
            else:
                fd = os.open(name, FOLDER_FLAGS, dir_fd=parent_fd)
        except OSError as error:
            self._could_not_open(parent, name, error)
            return
        child = parent.children.get(name)
        if child is not None and child.is_link is not is_link:
            self.forget(child)
            child = None
        is_new = child is None
        if is_new:
            self.closed.discard(path)  # all that is in it is told
        child = child or Folder(parent, name, parent.ignores, is_link=is_link)
        parent.children[name] = child
        try:
            self.refresh(tree, child, fd)
        except OSError as error:
            self.note_refused(path, error)
            if is_new:
                self.forget(child)

    def forget(self, folder: Folder) -> None:
        """Takes a folder and all beneath it out of the tree; its files are gone."""
        for below in folder.with_all_below():
            self._forget_names(below)
        self.release(folder)
        folder.detach()

    def release(self, folder: Folder) -> None:
        """Ends the watches of a folder and of all beneath it, but those that others have too."""
        for below in folder.with_all_below():
            self._unwatch(below)
            self.opened.discard(below)

    def follow(self, path: str, version: Version | None) -> None:
        """Notes what a path led to, to see when that changes."""
        if len(self.followed) < MAX_FOLLOWED or path in self.followed:
            self.followed[path] = version
        else:
            self.is_following_all = False

    def follow_unknown(self, path: str) -> None:
        """Notes that a path cannot be looked at, to see when it can.

        What it led to before stays known: whatever it is then is told if it differs.
        """
        if self.followed.get(path) is None:
            self.follow(path, UNKNOWN)

    def leads_elsewhere(
        self, folder: Folder, name: str, old: Version | None, new: Version | None
    ) -> None:
        """Notes that what a name leads to is not what it was."""
        if old == UNKNOWN or leads_to_folder(old, new):
            self.needs.add(RescanCause.LINK)
        elif self.lister.names(folder.ignores, folder.prefix + name, name):
            self.opened.add(folder)
            known = name in folder.names
            self._changes.change(folder.prefix + name, time.time_ns(), known=known)

    def could_not_look(self, folder: str, error: OSError) -> None:
        """Has callers scan, now or when it can be looked into: what is in a folder is not known.

        What is gone tells so by an event of its own.
        """
        self.note_refused(folder, error)
        if not is_limit(error) and error.errno not in GONE | _FORBIDDEN:
            self.needs.add(RescanCause.UNWATCHED)

    def note_refused(self, folder: str, error: OSError) -> None:
        """Notes that a folder could not be looked into, to have callers scan when it can."""
        if is_limit(error):
            self.is_limited = True
        elif error.errno in _FORBIDDEN and len(self.closed) < MAX_FOLLOWED:
            self.closed.add(folder)
        elif error.errno in _FORBIDDEN:
            self.is_following_all = False

    def pack(self) -> None:
        """Makes small what was opened since."""
        for folder in self.opened:
            folder.names.pack()
        self.opened.clear()

    def _watch(self, folder: Folder, fd: int) -> bool:
        """Watches an open folder; returns whether all that happened in it was seen until now.

        That is so when the watch is the same: it follows the inode, and its events come still.
        """
        status = os.fstat(fd)
        folder.identity = (status.st_dev, status.st_ino)
        try:
            wd = self._source.add(fd)
        except OSError as error:
            if not is_limit(error):
                raise
            wd = UNWATCHED
            self.is_limited = True
        if folder.wd == wd:
            return True
        self._unwatch(folder)
        folder.wd = wd
        if wd != UNWATCHED:
            self.by_wd[wd] = (*self.by_wd.get(wd, ()), folder)
        return False

    def _unwatch(self, folder: Folder) -> None:
        wd, folder.wd = folder.wd, UNWATCHED
        others = tuple(other for other in self.by_wd.get(wd, ()) if other is not folder)
        if others:
            self.by_wd[wd] = others
        elif self.by_wd.pop(wd, None) is not None:
            self._source.remove(wd)

    def _forget_names(self, folder: Folder) -> None:
        now = time.time_ns()
        for name in folder.names:
            self._changes.lift(folder.prefix + name, now, known=True)
        folder.names = FileNames()
        folder.names.pack()

    def _compare(self, folder: Folder, listing: Listing) -> None:
        now = time.time_ns()
        folder.ignores, folder.ignore_key = listing.ignores, listing.ignore_key
        folder.is_nested = listing.is_nested
        old = set(folder.names)
        for name in old - listing.files - listing.unknown:
            folder.names.discard(name)
            self._changes.lift(folder.prefix + name, now, known=True)
        for name in listing.files - old:
            folder.names.add(name)
            self._changes.put(folder.prefix + name, now, known=False)
        folder.names.pack()
        kept = {name for name, _ in listing.folders} | listing.unknown
        for name in [name for name in folder.children if name not in kept]:
            self.forget(folder.children[name])
        for name, version in listing.followed.items():
            self._follow_again(folder, name, version)
        for name in listing.unknown:
            self.follow_unknown(folder.prefix + name)

    def _keep_unknown(self) -> None:
        """Leaves it to the next look to tell what could not be looked at, unless all is scanned."""
        before, self._followed_before = self._followed_before, {}
        for path, version in before.items():
            if version == UNKNOWN and path not in self.followed and not self._changes.is_muted:
                self.follow(path, version)

    def _follow_again(self, folder: Folder, name: str, version: Version | None) -> None:
        """Notes what a name leads to now, and whether that changed since the last look.

        No later look tells it. Who is told to scan anyway needs no more.
        """
        path = folder.prefix + name
        old = self.followed.get(path, self._followed_before.get(path, version))
        self.follow(path, version)
        if old != version and not self._changes.is_muted:
            self.leads_elsewhere(folder, name, old, version)

    def _may_follow(self, parent: Folder, name: str, fd: int) -> bool:
        """Tells whether a link to a folder is walked, as a scan decides it: the first one is.

        Which one is the first is known in a walk over the whole tree alone; another asks for one.
        """
        status = os.fstat(fd)
        identity = (status.st_dev, status.st_ino)
        if self._is_full:
            if identity in self._walked_links:
                child = parent.children.get(name)
                if child is not None:
                    self.forget(child)
                return False
            self._walked_links.add(identity)
            return True
        child = parent.children.get(name)
        if child is not None and child.is_link and child.identity == identity:
            return True
        self.needs.add(RescanCause.LINK)
        return False

    def _could_not_open(self, parent: Folder, name: str, error: OSError) -> None:
        """Forgets a folder that is gone when no event may tell it.

        Of one that may not be read nothing is known until it may.
        """
        self.note_refused(parent.prefix + name, error)
        child = parent.children.get(name)
        if child is not None and error.errno in GONE and self._is_full:
            self.forget(child)


def leads_to_folder(*versions: Version | None) -> bool:
    """Tells whether one of the versions is a folder."""
    return any(version is not None and version.is_folder for version in versions)


def _nothing_ignored() -> IgnoreStack:
    return IgnoreStack.of_request(IgnoreRules(()))
