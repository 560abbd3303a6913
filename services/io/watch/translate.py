"""Turns the kernel's events into changes of paths."""

from __future__ import annotations

import os
import stat
import time
from typing import TYPE_CHECKING, TypeVar

from services.io.folders import REPOSITORY
from services.io.ignore import IGNORE_FILES
from services.io.watch import inotify
from services.io.watch.folders import UNWATCHED, Folder
from services.io.watch.listing import open_folder
from services.io.watch.model import RescanCause
from services.io.watch.walk import leads_to_folder

if TYPE_CHECKING:
    from services.io.paths import Tree
    from services.io.watch.coalesce import Changes, File
    from services.io.watch.inotify import RawEvent
    from services.io.watch.walk import Walk

Moved = TypeVar("Moved")

_CONTENT = inotify.MODIFY | inotify.CLOSE_WRITE
_ENTRY = inotify.CREATE | inotify.DELETE | inotify.MOVED_FROM | inotify.MOVED_TO
_SELF = inotify.DELETE_SELF | inotify.MOVE_SELF | inotify.UNMOUNT | inotify.IGNORED


class Translator:
    """Takes events one by one, in order; for one thread.

    The two halves of a rename share a cookie. A half without the other is a file that came from
    outside or went there. A folder that two links lead to has each half twice, in the same order.
    """

    def __init__(self, walk: Walk, changes: Changes, rename_files: int) -> None:
        self._walk = walk
        self._changes = changes
        self._rename_files = rename_files
        self._moves: dict[int, list[File | None]] = {}
        self._moved_folders: dict[int, list[tuple[Folder, dict[str, File]]]] = {}
        self.suspects: set[str] = set()
        """Prefixes of folders whose ignore files may say something else."""
        self.reopened: set[str] = set()
        """Prefixes of folders that became repositories of their own, or no longer are."""
        self.is_top_doubtful = False

    def take(self, tree: Tree, event: RawEvent) -> None:
        """Takes one event. What comes while a scan is needed anyway is dropped."""
        if event.mask & inotify.Q_OVERFLOW:
            self._walk.needs.add(RescanCause.OVERFLOW)
            return
        for folder in self._walk.by_wd.get(event.wd, ()):
            self._take_in(tree, folder, event)

    def _take_in(self, tree: Tree, folder: Folder, event: RawEvent) -> None:
        _, mask, cookie, raw = event
        if not raw:
            self._take_own(folder, mask)
            return
        if self._walk.needs:
            return
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            return
        if name == REPOSITORY and folder.parent is not None:
            if mask & _ENTRY:
                self.reopened.add(folder.prefix)
        elif folder.is_nested:
            return
        elif mask & inotify.ISDIR:
            self._take_folder(tree, folder, name, mask, cookie)
        else:
            self._take_file(tree, folder, name, mask, cookie)

    def end_window(self) -> None:
        """Gives up on halves whose other did not come."""
        for moved in self._moved_folders.values():
            for folder, _ in moved:
                self._walk.release(folder)
        self._moved_folders.clear()
        self._moves.clear()

    def _take_own(self, folder: Folder, mask: int) -> None:
        """Takes an event of a watched folder itself; its parent tells of it as well."""
        if folder.parent is None and mask & _SELF:
            self.is_top_doubtful = True
        if mask & inotify.UNMOUNT:
            self._walk.needs.add(RescanCause.UNMOUNTED)
        if mask & inotify.IGNORED:
            self._walk.by_wd.pop(folder.wd, None)
            folder.wd = UNWATCHED

    def _take_file(self, tree: Tree, folder: Folder, name: str, mask: int, cookie: int) -> None:
        path = folder.prefix + name
        if name in IGNORE_FILES:
            self.suspects.add(folder.prefix)
        child = folder.children.get(name)
        if mask & _ENTRY and child is not None and child.is_link:
            # Which of several links to one folder a scan follows, a walk over all finds out.
            self._walk.needs.add(RescanCause.LINK)
        self._walk.opened.add(folder)
        known = name in folder.names
        if not known and path not in self._changes:
            walk = self._walk
            if not walk.lister.names(folder.ignores, path, name):
                self._take_skipped(tree, folder, name, mask)
                return
        now = time.time_ns()
        if mask & inotify.MOVED_FROM:
            file = self._changes.lift(path, now, known=known)
            self._moves.setdefault(cookie, []).append(file)
            folder.names.discard(name)
        elif mask & inotify.DELETE:
            self._changes.lift(path, now, known=known)
            folder.names.discard(name)
        elif mask & (inotify.MOVED_TO | inotify.CREATE):
            file = _first(self._moves, cookie)
            self._changes.put(path, now, known=known, file=file)
            folder.names.add(name)
        elif mask & _CONTENT:
            self._changes.change(path, now, known=known)
            folder.names.add(name)
        elif mask & inotify.ATTRIB:
            self._changes.notice(path, now, known=known)

    def _take_skipped(self, tree: Tree, folder: Folder, name: str, mask: int) -> None:
        """Looks whether a name that no file is taken of is a link: it may lead to a folder."""
        walk, is_new = self._walk, mask & (inotify.CREATE | inotify.MOVED_TO)
        if not is_new or not walk.lister.walks(folder, folder.ignores, name):
            return
        try:
            fd = open_folder(tree, folder)
            try:
                mode = os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode
            finally:
                os.close(fd)
            if not stat.S_ISLNK(mode):
                return
            version = walk.lister.link(tree, folder.prefix + name)
        except OSError as error:
            walk.could_not_look(folder.path, error)
            return
        walk.follow(folder.prefix + name, version)
        if leads_to_folder(version):
            walk.needs.add(RescanCause.LINK)

    def _take_folder(self, tree: Tree, folder: Folder, name: str, mask: int, cookie: int) -> None:
        child = folder.children.get(name)
        if mask & inotify.DELETE:
            if child is not None:
                self._walk.forget(child)
        elif mask & inotify.MOVED_FROM:
            if child is not None:
                self._move_away(child, cookie)
                # Of two that are exchanged, the kernel tells first what came to a name.
                self._enter(tree, folder, name)
        elif mask & inotify.CREATE or (mask & inotify.ATTRIB and child is None):
            self._enter(tree, folder, name)
        elif mask & inotify.MOVED_TO:
            self._move_here(tree, folder, name, cookie)

    def _enter(self, tree: Tree, folder: Folder, name: str) -> None:
        """Walks a folder that came, if a scan does."""
        if not self._walk.lister.walks(folder, folder.ignores, name):
            return
        try:
            fd = open_folder(tree, folder)
        except OSError as error:
            self._walk.could_not_look(folder.path, error)
            return
        try:
            self._walk.enter(tree, folder, name, fd)
        finally:
            os.close(fd)

    def _move_away(self, child: Folder, cookie: int) -> None:
        """Lifts all files beneath a folder; its watches stay until it is known where it went."""
        carried: dict[str, File] = {}
        now = time.time_ns()
        start = len(child.prefix)
        for below in child.with_all_below():
            for name in below.names:
                file = self._changes.lift(below.prefix + name, now, known=True)
                if file is not None:
                    carried[below.prefix[start:] + name] = file
            below.names.pack()
            if len(carried) > self._rename_files:
                self._walk.needs.add(RescanCause.BURST)
                return
        child.detach()
        self._moved_folders.setdefault(cookie, []).append((child, carried))

    def _move_here(self, tree: Tree, folder: Folder, name: str, cookie: int) -> None:
        moved, carried = _first(self._moved_folders, cookie) or (None, {})
        if not self._walk.lister.walks(folder, folder.ignores, name):
            if moved is not None:
                self._walk.release(moved)
            return
        prefix = f"{folder.prefix}{name}/"
        if moved is None:
            self._enter(tree, folder, name)
        elif name not in folder.children:
            # Also when it went on already, so that what is known of it goes with it.
            moved.move_to(folder, name)
            self._place(prefix, carried)
            self._enter(tree, folder, name)
        else:
            # A walk was here before this event, and has told or noted what it found as new.
            self._enter(tree, folder, name)
            self._walk.release(moved)

    def _place(self, prefix: str, carried: dict[str, File]) -> None:
        now = time.time_ns()
        for rest, file in carried.items():
            self._changes.put(prefix + rest, now, known=False, file=file)


def _first(moves: dict[int, list[Moved]], cookie: int) -> Moved | None:
    """Takes out what left first under a cookie."""
    waiting = moves.get(cookie)
    return waiting.pop(0) if waiting else None
