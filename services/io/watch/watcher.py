"""The thread that watches one tree, for all who ask for it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from services.io import metrics
from services.io.watch.listing import WatchStopped
from services.io.watch.log import EventLog
from services.io.watch.loop import WatchLoop
from services.io.watch.source import Source
from services.runtime.errors import LodestoneError
from services.runtime.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.io.origins import Origins
    from services.io.paths import Tree
    from services.io.scanner import ScanRules
    from services.io.watch.model import WatchOptions


class TreeWatcher:
    """The watch of one tree; `start` it once, then `stop` and `join` it.

    `on_news` is called from the thread: when the watch is in place, when the log has more, and when
    the watch has ended.
    """

    def __init__(
        self,
        open_tree: Callable[[], Tree],
        rules: ScanRules,
        origins: Origins,
        options: WatchOptions,
        on_news: Callable[[], None],
    ) -> None:
        self.log = EventLog(options.log_events, options.log_seconds)
        self.error: Exception | None = None
        """Why the watch ended, when it was not stopped."""
        self.is_ready = False
        """Whether every change from now on is told."""
        self._open_tree = open_tree
        self._rules = rules
        self._origins = origins
        self._options = options
        self._on_news = on_news
        self._stopped = threading.Event()
        self._source: Source | None = None
        self._thread = threading.Thread(target=self._run, name="io-watch", daemon=True)

    @property
    def has_ended(self) -> bool:
        """Whether it was stopped or has failed."""
        return self._stopped.is_set()

    @property
    def is_alive(self) -> bool:
        """Whether the thread has not closed everything yet."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begins to set the watch up, in the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Asks the thread to end."""
        self._stopped.set()
        if self._source is not None:
            self._source.wake()

    def join(self) -> None:
        """Waits until the thread has closed everything."""
        self._thread.join()

    def _run(self) -> None:
        try:
            self._watch()
        except WatchStopped:
            pass
        except LodestoneError as error:
            self.error = error
        except Exception as error:  # noqa: BLE001 - callers are told, and the next watch is new
            get_logger().error("watch_failed", exc_info=error)
            self.error = error
        self._stopped.set()
        self._on_news()

    def _watch(self) -> None:
        source = self._source = Source(self._options.queue_bytes)
        loop = WatchLoop(
            self._open_tree,
            source,
            self.log,
            rules=self._rules,
            origins=self._origins,
            options=self._options,
            is_stopped=self._stopped.is_set,
        )
        metrics.WATCHED_TREES.inc()
        try:
            loop.set_up()
            self.is_ready = True
            self._on_news()
            loop.run(self._on_news)
        finally:
            metrics.WATCHED_TREES.dec()
            loop.end()
            source.close()
