"""Shares the watch of a tree among all who ask for it, and ends it some time after the last."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

from services.io import metrics
from services.io.watch.watcher import TreeWatcher
from services.runtime.errors import OverloadedError, ShuttingDownError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from services.io.origins import Origins
    from services.io.paths import Tree
    from services.io.scanner import ScanRules
    from services.io.watch.log import EventLog
    from services.io.watch.model import WatchOptions

_RETRY_SECONDS = 1.0


class Watchers:
    """The watched trees of one server; used in its event loop alone."""

    def __init__(
        self,
        open_tree: Callable[[str, str], Tree],
        rules: ScanRules,
        origins: Origins,
        options: WatchOptions,
    ) -> None:
        self.options = options
        self._open_tree = open_tree
        self._rules = rules
        self._origins = origins
        self._shared: dict[tuple[str, str], _SharedWatch] = {}
        self._ending: list[TreeWatcher] = []
        self._streams = 0
        self._is_draining = False

    @asynccontextmanager
    async def subscribe(self, root: str, directory: str) -> AsyncIterator[Subscription]:
        """Yields the watch of a tree once it is in place.

        Raises:
            OverloadedError: there are as many streams or trees as may be.
            ShuttingDownError: the server drains.
            LodestoneError: the tree cannot be watched.
        """
        if self._streams >= self.options.max_streams:
            raise _too_many("watch_max_streams", self.options.max_streams)
        shared = self._share((root, directory))
        subscription = Subscription(shared)
        shared.subscriptions.add(subscription)
        self._streams += 1
        metrics.WATCH_STREAMS.inc()
        try:
            while not shared.watcher.is_ready:
                subscription.raise_if_over()
                await subscription.wait(None)
            yield subscription
        finally:
            self._streams -= 1
            metrics.WATCH_STREAMS.dec()
            shared.subscriptions.discard(subscription)
            if not shared.subscriptions:
                self._release_later(shared)

    def drain(self) -> None:
        """Has every stream end, and lets no more in."""
        self._is_draining = True
        for shared in self._shared.values():
            shared.is_draining = True
            shared.tell()

    async def close(self) -> None:
        """Ends every watch and waits for its thread."""
        self.drain()
        for shared in list(self._shared.values()):
            self._end(shared)
        for watcher in self._ending:
            await asyncio.to_thread(watcher.join)
        self._ending.clear()

    def _share(self, key: tuple[str, str]) -> _SharedWatch:
        if self._is_draining:
            raise ShuttingDownError("The server is stopping.", retry_after_seconds=_RETRY_SECONDS)
        shared = self._shared.get(key)
        if shared is not None and not shared.watcher.has_ended:
            shared.keep()
            return shared
        if shared is not None:
            self._end(shared)
        if len(self._shared) >= self.options.max_trees:
            self._make_room()
        loop = asyncio.get_running_loop()
        shared = _SharedWatch(key, loop)
        shared.watcher = TreeWatcher(
            partial(self._open_tree, *key),
            self._rules,
            self._origins,
            self.options,
            shared.tell_from_thread,
        )
        self._shared[key] = shared
        shared.watcher.start()
        return shared

    def _make_room(self) -> None:
        """Ends a watch that nobody uses now."""
        idle = next((item for item in self._shared.values() if not item.subscriptions), None)
        if idle is None:
            raise _too_many("watch_max_trees", self.options.max_trees)
        self._end(idle)

    def _release_later(self, shared: _SharedWatch) -> None:
        if self._shared.get(shared.key) is not shared:
            return
        if shared.watcher.has_ended or self._is_draining:
            self._end(shared)
        else:
            shared.release_after(self.options.grace_seconds, partial(self._end, shared))

    def _end(self, shared: _SharedWatch) -> None:
        shared.keep()
        shared.watcher.stop()
        shared.tell()
        if self._shared.get(shared.key) is shared:
            del self._shared[shared.key]
        self._ending = [watcher for watcher in self._ending if watcher.is_alive]
        self._ending.append(shared.watcher)


class _SharedWatch:
    """The watch of one tree, and who waits for its news."""

    watcher: TreeWatcher

    def __init__(self, key: tuple[str, str], loop: asyncio.AbstractEventLoop) -> None:
        self.key = key
        self.subscriptions: set[Subscription] = set()
        self.is_draining = False
        self._loop = loop
        self._release: asyncio.TimerHandle | None = None

    def tell(self) -> None:
        """Wakes all who wait."""
        for subscription in self.subscriptions:
            subscription.wake()

    def tell_from_thread(self) -> None:
        """Wakes all who wait, from the thread of the watch."""
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self.tell)

    def keep(self) -> None:
        """Forgets that it was to end."""
        if self._release is not None:
            self._release.cancel()
            self._release = None

    def release_after(self, seconds: float, end: Callable[[], None]) -> None:
        """Ends it after a while, unless it is kept."""
        self.keep()
        self._release = self._loop.call_later(seconds, end)


class Subscription:
    """One caller's place at the watch of a tree."""

    def __init__(self, shared: _SharedWatch) -> None:
        self._shared = shared
        self._news = asyncio.Event()

    @property
    def log(self) -> EventLog:
        """The events of the tree."""
        return self._shared.watcher.log

    def raise_if_over(self) -> None:
        """Raises why the watch has ended, if it has."""
        watcher = self._shared.watcher
        if self._shared.is_draining:
            raise ShuttingDownError("The server is stopping.", retry_after_seconds=_RETRY_SECONDS)
        if watcher.has_ended:
            raise watcher.error or ShuttingDownError(
                "The watch was ended.", retry_after_seconds=_RETRY_SECONDS
            )

    def wake(self) -> None:
        """Tells that there is news."""
        self._news.set()

    async def wait(self, seconds: float | None) -> bool:
        """Waits for news since the last call; returns False after the time."""
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            return False
        self._news.clear()
        return True


def _too_many(setting: str, limit: int) -> OverloadedError:
    return OverloadedError(
        "Too many trees are watched at once.",
        metadata={"limit": str(limit), "setting": setting},
        retry_after_seconds=_RETRY_SECONDS,
    )
