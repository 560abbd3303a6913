"""A watched folder, and what a caller knows who applies its events."""

from __future__ import annotations

import itertools
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from services.io.model import Root, SymlinkPolicy
from services.io.names import NameRules
from services.io.origins import Origins
from services.io.paths import Tree
from services.io.scanner import ScanRules, TreeScan
from services.io.watch.model import EventType, FileEvent, WatchOptions
from services.io.watch.watcher import TreeWatcher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

RULES = ScanRules(1000, NameRules())
QUICK = WatchOptions(quiet_seconds=0.02, max_wait_seconds=0.3, check_seconds=0.05)
PATIENT = WatchOptions(quiet_seconds=0.2, max_wait_seconds=2.0, check_seconds=0.05)
"""For what an operation is told as: one that flushes its file may take longer than the quiet."""
WAIT_SECONDS = 20.0
MARK = "zz-mark-"
Version = tuple[int, int, int]


def wait_for(condition: Callable[[], object], seconds: float = WAIT_SECONDS) -> None:
    """Waits until something is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        threading.Event().wait(0.005)


class Watched:
    """A watched folder."""

    def __init__(self, top: Path, open_tree: Callable[[], Tree], watcher: TreeWatcher) -> None:
        self.top = top
        self.watcher = watcher
        self._open_tree = open_tree
        self._position = 0
        self._marks = (f"{MARK}{number}.py" for number in itertools.count())

    def new_mark(self) -> str:
        """Makes a file that nothing else touches, and returns its path."""
        mark = next(self._marks)
        (self.top / mark).write_text("")
        return mark

    def events(self) -> list[FileEvent]:
        """Returns what was told since the last call, once all that was done until now is told.

        The kernel keeps the order of events: what was done before a file is told before it.
        """
        mark = self.new_mark()
        told: list[FileEvent] = []

        def is_told() -> bool:
            assert self.watcher.error is None, self.watcher.error
            events = self.watcher.log.read(self._position, 100_000)
            assert events is not None
            self._position += len(events)
            told.extend(events)
            return any(e.path == mark or e.type is EventType.RESCAN for e in events)

        wait_for(is_told)
        return [event for event in told if not event.path.startswith(MARK)]

    def events_until(self, count: int) -> list[tuple[str, ...]]:
        """Returns so many different events, without what differs from run to run."""
        told: set[tuple[str, ...]] = set()

        def are_told() -> bool:
            told.update(kinds(self.events()))
            return len(told) >= count

        wait_for(are_told)
        return sorted(told)

    def scan(self) -> dict[str, Version]:
        """Returns what a scan finds: the oracle."""
        with self._open_tree() as tree:
            batches = list(TreeScan(tree, RULES).batches())
        return {
            file.path: (file.size, file.mtime_ns, file.inode)
            for batch in batches
            for file in batch.files
            if not file.path.startswith(MARK)
        }


@contextmanager
def watch(
    top: Path,
    policy: SymlinkPolicy = SymlinkPolicy.WITHIN_ROOT,
    directory: str = "",
    options: WatchOptions = QUICK,
    origins: Origins | None = None,
) -> Iterator[Watched]:
    """Watches a folder as a root of its own, or a folder beneath it."""

    def open_tree() -> Tree:
        return Tree(Root("test", str(top), policy), directory)

    watcher = TreeWatcher(open_tree, RULES, origins or Origins(), options, lambda: None)
    watcher.start()
    try:
        wait_for(lambda: watcher.is_ready or watcher.has_ended)
        yield Watched(top / directory, open_tree, watcher)
    finally:
        watcher.stop()
        watcher.join()


def applied(
    events: list[FileEvent], told: dict[str, Version], now: dict[str, Version]
) -> dict[str, Version]:
    """Returns what a caller knows who applies events to an old listing.

    A created or modified file is read anew, a renamed one is moved as it was known, and a RESCAN
    reads all.
    """
    known = dict(told)
    for event in events:
        match event.type:
            case EventType.CREATED | EventType.MODIFIED:
                known[event.path] = now.get(event.path, (-1, -1, -1))
            case EventType.REMOVED:
                known.pop(event.path, None)
            case EventType.RENAMED:
                known[event.path] = known.pop(event.old_path)
            case EventType.RESCAN:
                known = dict(now)
    return known


class Client:
    """A caller who looks at each file that an event names, at once, as an indexer does."""

    def __init__(self, watched: Watched) -> None:
        self.known = watched.scan()
        self.rescans = 0
        self._watched = watched
        self._position = watched.watcher.log.end

    def take(self) -> list[str]:
        """Takes what was told by now; returns the paths."""
        assert self._watched.watcher.error is None, self._watched.watcher.error
        events = self._watched.watcher.log.read(self._position, 1_000_000)
        assert events is not None
        self._position += len(events)
        for event in events:
            if event.type is EventType.RESCAN:
                self.rescans += 1
                self.known = self._watched.scan()
            if event.old_path:
                self.known.pop(event.old_path, None)
            self._look(event)
        return [event.path for event in events]

    def catch_up(self) -> None:
        """Takes events until all that was done is told."""
        mark = self._watched.new_mark()
        wait_for(lambda: {mark, ""} & set(self.take()))

    def _look(self, event: FileEvent) -> None:
        if not event.path or event.path.startswith(MARK):
            return
        self.known.pop(event.path, None)
        if event.type is not EventType.REMOVED:
            with suppress(OSError):
                status = (self._watched.top / event.path).stat()
                self.known[event.path] = (status.st_size, status.st_mtime_ns, status.st_ino)


def kinds(events: list[FileEvent]) -> list[tuple[str, ...]]:
    """Returns events as sorted tuples without what differs from run to run."""
    return sorted(
        (event.type.name.lower(), event.path, event.old_path)[: 3 if event.old_path else 2]
        for event in events
    )
