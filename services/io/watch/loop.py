"""Takes the events of one tree, waits for quiet, and tells what changed."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from services.io import metrics
from services.io.errors import PathNotFoundError, file_error
from services.io.watch.coalesce import Changes
from services.io.watch.model import RescanCause
from services.io.watch.settle import Settler
from services.io.watch.translate import Translator
from services.io.watch.walk import Walk
from services.runtime.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from services.io.origins import Origins
    from services.io.paths import Tree
    from services.io.scanner import ScanRules
    from services.io.watch.inotify import RawEvent
    from services.io.watch.log import EventLog
    from services.io.watch.model import WatchOptions
    from services.io.watch.source import Source

_CHECK_SHARE = 20
"""A check that took a second is repeated after 20 at the earliest."""


class WatchLoop:
    """The work of the thread that watches one tree."""

    def __init__(
        self,
        open_tree: Callable[[], Tree],
        source: Source,
        log: EventLog,
        *,
        rules: ScanRules,
        origins: Origins,
        options: WatchOptions,
        is_stopped: Callable[[], bool],
    ) -> None:
        self._open_tree = open_tree
        self._source = source
        self._options = options
        self._log = log
        self._is_stopped = is_stopped
        self._changes = Changes(options.log_events)
        self._walk = Walk(source, rules, self._changes, is_stopped)
        self._translator = Translator(self._walk, self._changes, options.rename_files)
        self._settler = Settler(self._walk, self._translator, self._changes, origins, log)
        self._identity: tuple[int, int] | None = None
        self._first_change: float | None = None
        self._last_change = 0.0
        self._next_check = 0.0
        self._next_rescan: float | None = None
        self._counted_folders = 0

    def set_up(self) -> None:
        """Watches the tree as it is now.

        Raises:
            LodestoneError: the tree cannot be opened.
            WatchStopped: the watch was ended meanwhile.
        """
        with self._opened() as tree:
            self._settler.walk_all(tree)
        self._next_check = time.monotonic() + self._options.check_seconds
        self._note_limits()

    def run(self, on_news: Callable[[], None]) -> None:
        """Tells what changes until it is stopped.

        Raises:
            LodestoneError: the tree is gone, or cannot be opened any more.
            WatchStopped: the watch was ended meanwhile.
        """
        while not self._is_stopped():
            events = self._source.take(self._next_due() - time.monotonic())
            if events:
                self._take(events)
            if self._translator.is_top_doubtful or time.monotonic() >= self._next_check:
                self._check()
            if self._next_rescan is not None and time.monotonic() >= self._next_rescan:
                self._next_rescan = None
                self._walk.needs.add(RescanCause.UNWATCHED)
                self._touched()
            if self._is_flush_due():
                self._flush()
                on_news()

    def end(self) -> None:
        """Takes what it counted out of the metrics."""
        metrics.WATCHED_FOLDERS.dec(self._counted_folders)

    def _take(self, events: list[RawEvent]) -> None:
        before = self._changes.touches
        translator = self._translator
        with self._opened() as tree:
            for event in events:
                translator.take(tree, event)
        has_more = self._changes.touches != before or self._is_to_be_told()
        if has_more or translator.suspects or translator.reopened:
            self._touched()

    def _is_to_be_told(self) -> bool:
        """Tells whether callers must scan, now or later as the system is at a limit."""
        is_newly_limited = self._walk.is_limited and self._next_rescan is None
        return bool(self._walk.needs) or is_newly_limited

    def _touched(self) -> None:
        self._last_change = time.monotonic()
        if self._first_change is None:
            self._first_change = self._last_change

    def _flush_at(self) -> float | None:
        if self._first_change is None:
            return None
        return min(
            self._last_change + self._options.quiet_seconds,
            self._first_change + self._options.max_wait_seconds,
        )

    def _is_flush_due(self) -> bool:
        due = self._flush_at()
        return due is not None and time.monotonic() >= due

    def _next_due(self) -> float:
        dues = (self._flush_at(), self._next_check, self._next_rescan)
        return min(due for due in dues if due is not None)

    def _flush(self) -> None:
        self._first_change = None
        with self._opened() as tree, _as_file_errors():
            events, causes = self._settler.events(tree)
        for cause in causes:
            metrics.WATCH_RESCANS.labels(cause.value).inc()
            get_logger().warning("watch_rescan", cause=cause.value)
        for event in events:
            metrics.WATCH_EVENTS.labels(event.type.name.lower()).inc()
        if events:
            self._log.append(events)
        self._note_limits()

    def _check(self) -> None:
        """Looks where no event comes from: whether the tree is still there, and behind links."""
        started = time.monotonic()
        before = self._changes.touches
        with self._opened() as tree:
            self._settler.look_at_followed(tree)
            self._settler.look_at_closed(tree)
        if self._translator.is_top_doubtful:
            # The path leads to a folder of the same inode, of which no event comes any more.
            self._translator.is_top_doubtful = False
            self._walk.needs.add(RescanCause.UNMOUNTED)
        if self._changes.touches != before or self._is_to_be_told():
            self._touched()
        self._log.forget_old()
        now = time.monotonic()
        pause = max(self._options.check_seconds, _CHECK_SHARE * (now - started))
        self._next_check = now + pause

    def _note_limits(self) -> None:
        folders = len(self._walk.by_wd)
        metrics.WATCHED_FOLDERS.inc(folders - self._counted_folders)
        self._counted_folders = folders
        walk = self._walk
        if not walk.is_limited and walk.is_following_all:
            self._next_rescan = None
        elif self._next_rescan is None:
            self._next_rescan = time.monotonic() + self._options.rescan_seconds
            get_logger().warning(
                "watch_incomplete",
                system_limit=walk.is_limited,
                raise_sysctl="fs.inotify.max_user_watches, fs.inotify.max_user_instances",
                watched_folders=folders,
                rescan_seconds=self._options.rescan_seconds,
            )

    @contextmanager
    def _opened(self) -> Iterator[Tree]:
        """Opens the tree, which must be the one that is watched."""
        with self._open_tree() as tree, _as_file_errors():
            status = os.fstat(tree.fd)
            identity = (status.st_dev, status.st_ino)
            if self._identity is None:
                self._identity = identity
            if identity != self._identity:
                raise PathNotFoundError.at(
                    tree.directory, "The folder that was watched is not there any more."
                )
            yield tree


@contextmanager
def _as_file_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise file_error(error, "") from None
