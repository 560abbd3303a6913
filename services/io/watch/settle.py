"""Holds what was noted against the disk, just before it is told.

Events are hints: they may be older than what a walk saw. What is told is what a look at each
touched path finds.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from typing import TYPE_CHECKING

from services.io.errors import GONE, NOT_FOLLOWED
from services.io.ignore import IGNORE_FILES
from services.io.watch.folders import Folder, split
from services.io.watch.inotify import is_limit
from services.io.watch.listing import Version, ignore_files, open_folder, version_of
from services.io.watch.model import EventType, FileEvent, RescanCause
from services.io.watch.walk import leads_to_folder

if TYPE_CHECKING:
    from collections.abc import Iterable

    from services.io.origins import Origins
    from services.io.paths import Tree
    from services.io.watch.coalesce import Changes
    from services.io.watch.folders import Identity
    from services.io.watch.log import EventLog
    from services.io.watch.translate import Translator
    from services.io.watch.walk import Walk

_WALKS_ALL = frozenset(RescanCause) - {RescanCause.IGNORE_RULES}


class Settler:
    """Makes events of what was noted; for one thread."""

    def __init__(
        self,
        walk: Walk,
        translator: Translator,
        changes: Changes,
        origins: Origins,
        log: EventLog,
    ) -> None:
        self._walk = walk
        self._translator = translator
        self._changes = changes
        self._origins = origins
        self._log = log

    def events(self, tree: Tree) -> tuple[list[FileEvent], frozenset[RescanCause]]:
        """Returns what to tell: events, or one RESCAN with its causes.

        When that is told, the tree is watched and remembered as it is: what a caller's scan does
        not see comes as an event.

        Raises:
            OSError: the top cannot be read.
            WatchStopped: the watch was ended meanwhile.
        """
        self._translator.end_window()
        self._refresh_parts(tree)
        needs = self._walk.needs
        if not needs & _WALKS_ALL:
            self._look(tree)
        if self._changes.is_overfull:
            needs.add(RescanCause.BURST)
        causes = frozenset(needs)
        needs.clear()
        if causes & _WALKS_ALL:
            self.walk_all(tree)
        events = self._changes.take_events(self._log.told_of)
        self._walk.pack()
        if causes:
            events = [FileEvent(EventType.RESCAN, time_ns=time.time_ns())]
        return events, causes

    def walk_all(self, tree: Tree) -> None:
        """Watches and remembers the tree as it is now; no change is noted.

        Raises:
            OSError: the top cannot be read.
            WatchStopped: the watch was ended meanwhile.
        """
        self._changes.forget()
        self._changes.is_muted = True
        try:
            self._walk.refresh_all(tree)
        finally:
            self._changes.is_muted = False
        self._walk.pack()

    def look_at_followed(self, tree: Tree) -> None:
        """Notes the links that lead elsewhere, and files that changed where no event tells it."""
        for path, old in list(self._walk.followed.items()):
            prefix, name = split(path)
            folder = self._walk.top.find(prefix)
            if folder is None:
                del self._walk.followed[path]
                continue
            try:
                new = self._version(tree, folder, name)
            except OSError as error:
                self._walk.is_limited = self._walk.is_limited or is_limit(error)
                continue  # nothing is known of it, and what was known holds
            if new != old:
                self._walk.followed[path] = new
                self._walk.leads_elsewhere(folder, name, old, new)
                if name in IGNORE_FILES:
                    self._translator.suspects.add(prefix)

    def look_at_closed(self, tree: Tree) -> None:
        """Has callers scan when a folder may be read that might not: what it holds is not known."""
        for path in list(self._walk.closed):
            try:
                self._search(tree, path)
            except OSError as error:
                if error.errno in NOT_FOLLOWED:
                    self._walk.closed.discard(path)
                continue
            self._walk.closed.discard(path)
            self._walk.needs.add(RescanCause.RIGHTS)

    def _search(self, tree: Tree, path: str) -> None:
        """Opens a folder, known or not, and looks into it.

        Raises:
            OSError: it is gone, or may not be read or searched.
        """
        prefix, name = split(path)
        folder = self._walk.top.find(prefix)
        if folder is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        if name:
            is_link = leads_to_folder(self._walk.followed.get(path))
            unknown = Folder(folder, name, folder.ignores, is_link=is_link)
            folder = folder.children.get(name, unknown)
        fd = open_folder(tree, folder)
        try:
            os.stat(".", dir_fd=fd)
        finally:
            os.close(fd)

    def _version(self, tree: Tree, folder: Folder, name: str) -> Version | None:
        """Returns what a name leads to now.

        Raises:
            OSError: it cannot be looked at, so that nothing is known of it.
        """
        try:
            fd = open_folder(tree, folder)
            try:
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            finally:
                os.close(fd)
        except OSError as error:
            if error.errno in NOT_FOLLOWED:
                return None
            raise
        if stat.S_ISLNK(status.st_mode):
            return self._walk.lister.link(tree, folder.prefix + name)
        return version_of(status)

    def _refresh_parts(self, tree: Tree) -> None:
        """Walks the folders whose ignore files changed or that are repositories of their own."""
        suspects, reopened = self._translator.suspects, self._translator.reopened
        for prefix in sorted(suspects | reopened):
            folder = self._walk.top.find(prefix)
            if folder is None:
                continue
            try:
                self._refresh_part(tree, folder, is_reopened=prefix in reopened)
            except OSError as error:
                if folder.parent is None and not is_limit(error):
                    raise  # of another folder that cannot be read nothing new is known
                self._walk.could_not_look(folder.path, error)
        suspects.clear()
        reopened.clear()

    def _refresh_part(self, tree: Tree, folder: Folder, *, is_reopened: bool) -> None:
        fd = open_folder(tree, folder)
        try:
            _, key = ignore_files(fd, folder.prefix, folder.ignores)
        except OSError:
            os.close(fd)
            raise
        if key != folder.ignore_key and not folder.is_nested:
            self._walk.needs.add(RescanCause.IGNORE_RULES)
        elif not is_reopened:
            os.close(fd)
            return
        self._walk.refresh(tree, folder, fd)

    def _look(self, tree: Tree) -> None:
        """Looks at every touched path."""
        waiting = self._changes.paths()
        seen: set[str] = set()
        while waiting:
            seen.update(waiting)
            linked = self._look_at(tree, waiting)
            if linked:
                self._find_other_names(tree, linked)
            waiting = [path for path in self._changes.paths() if path not in seen]

    def _find_other_names(self, tree: Tree, linked: set[Identity]) -> None:
        """Tells files that got a second name: the first is somewhere, and a walk finds it."""
        self._walk.refresh_all(tree)
        now = time.time_ns()
        for path, version in self._walk.followed.items():
            if version is not None and (version.device, version.inode) in linked:
                prefix, name = split(path)
                folder = self._walk.top.find(prefix)
                if folder is not None and name in folder.names:
                    self._walk.opened.add(folder)
                    self._changes.change(path, now, known=True)

    def _look_at(self, tree: Tree, paths: Iterable[str]) -> set[Identity]:
        """Looks at paths, one folder after the other.

        Returns the files that have names that are not known.
        """
        by_folder: dict[str, list[str]] = {}
        for path in paths:
            prefix, name = split(path)
            by_folder.setdefault(prefix, []).append(name)
        linked: set[Identity] = set()
        for prefix, names in by_folder.items():
            folder = self._walk.top.find(prefix)
            if folder is None or folder.is_nested:
                for name in names:
                    self._miss(folder, prefix + name, name)
                continue
            self._walk.opened.add(folder)
            linked |= self._look_into(tree, folder, names)
        return linked

    def _look_into(self, tree: Tree, folder: Folder, names: Iterable[str]) -> set[Identity]:
        linked: set[Identity] = set()
        try:
            fd = open_folder(tree, folder)
        except OSError as error:
            # A folder that may not be read is not gone: what events said of it holds.
            if error.errno in GONE:
                for name in names:
                    self._miss(folder, folder.prefix + name, name)
            else:
                self._walk.note_refused(folder.path, error)
            return linked
        try:
            for name in names:
                status = self._look_at_name(tree, folder, fd, name)
                if status is not None and self._is_newly_linked(folder.prefix + name, status):
                    linked.add((status.st_dev, status.st_ino))
        finally:
            os.close(fd)
        return linked

    def _look_at_name(
        self, tree: Tree, folder: Folder, fd: int, name: str
    ) -> os.stat_result | None:
        """Looks at one path; returns the status of a regular file that is taken."""
        path = folder.prefix + name
        lister = self._walk.lister
        try:
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        except OSError as error:
            if error.errno in GONE:
                self._miss(folder, path, name)
            else:
                self._walk.note_refused(folder.path, error)
            return None
        if stat.S_ISLNK(status.st_mode):
            self._look_at_link(tree, folder, path, name)
            return None
        if not lister.takes(name, status) or not lister.names(folder.ignores, path, name):
            self._miss(folder, path, name)
            return None
        self._compare_followed(folder, path, name, version_of(status))
        folder.names.add(name)
        self._changes.found(path, self._origins.origin_of(status, os.fstat(fd), name))
        return status

    def _compare_followed(
        self, folder: Folder, path: str, name: str, version: Version | None
    ) -> None:
        """Notes a change that the next look at what is followed would have told.

        The event that this look is for may tell of other things, such as rights.
        """
        if self._walk.followed.get(path, version) != version:
            self._changes.change(path, time.time_ns(), known=name in folder.names)

    def _is_newly_linked(self, path: str, status: os.stat_result) -> bool:
        followed = self._walk.followed
        if status.st_nlink == 1:
            followed.pop(path, None)
            return False
        was_known = path in followed
        self._walk.follow(path, version_of(status))
        return not was_known and path in followed

    def _look_at_link(self, tree: Tree, folder: Folder, path: str, name: str) -> None:
        try:
            version = self._walk.lister.link(tree, path)
        except OSError as error:
            self._walk.could_not_look(path, error)
            self._walk.follow_unknown(path)
            return
        self._compare_followed(folder, path, name, version)
        old = self._walk.followed.get(path)
        self._walk.follow(path, version)
        if old != version and leads_to_folder(old, version):
            self._walk.needs.add(RescanCause.LINK)
        if self._walk.lister.takes_link(name, version):
            folder.names.add(name)
            self._changes.found(path, "")
        else:
            folder.names.discard(name)
            self._changes.missed(path)

    def _miss(self, folder: Folder | None, path: str, name: str) -> None:
        self._walk.followed.pop(path, None)
        if folder is not None:
            folder.names.discard(name)
        self._changes.missed(path)
