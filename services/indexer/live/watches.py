"""The watches that this process holds: takes, prolongs and gives back their leases."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from services.indexer import metrics
from services.indexer.errors import DATABASE_FAILURES, LeaseLostError
from services.indexer.live.watcher import WatchContext, Watcher
from services.runtime.errors import NotFoundError, ShuttingDownError
from services.runtime.log import get_logger

if TYPE_CHECKING:
    from services.indexer.model import WorkspaceId
    from services.indexer.storage.watches import Watch

_LONGEST_POLL_SECONDS = 0.5
_BEATS_PER_LEASE = 4
_ENDS = (LeaseLostError, NotFoundError, ShuttingDownError)
"""Errors that end a watch as they should."""


class LiveWatches:
    """Owns the watchers of this process.

    Args:
        context: what watchers are made with.
        lease_seconds: of a watch.
        most: workspaces that this process watches at once; 0 for none.
    """

    def __init__(self, context: WatchContext, lease_seconds: float, most: int) -> None:
        self._context = context
        self._poll_seconds = min(_LONGEST_POLL_SECONDS, lease_seconds / _BEATS_PER_LEASE)
        self._most = most
        self._held: dict[WorkspaceId, tuple[Watch, asyncio.Task[None]]] = {}
        self._asked = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to watch."""
        if self._most:
            self._loop = asyncio.create_task(self._hold_forever(), name="watches")

    async def stop(self) -> None:
        """Ends all watches and gives them back, so that others take them at once."""
        if self._loop is not None:
            self._loop.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._loop
        held = [watch for watch, _ in self._held.values()]
        for workspace_id in list(self._held):
            await self._end(workspace_id)
        for watch in held:
            with contextlib.suppress(*DATABASE_FAILURES):
                await self._context.watches.release(watch)

    def look_again(self) -> None:
        """Looks at once what is to be watched; other replicas do within half a second."""
        self._asked.set()

    async def _hold_forever(self) -> None:
        while True:
            try:
                await self._beat()
                await self._take()
            except DATABASE_FAILURES:
                get_logger().warning("watches_wait_for_database")
            except Exception as error:  # noqa: BLE001 - a dead loop would watch nothing ever
                metrics.LIVE_ERRORS.inc()
                get_logger().error("watches_failed", exc_info=error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._poll_seconds):
                    await self._asked.wait()
            self._asked.clear()

    async def _beat(self) -> None:
        if not self._held:
            return
        watches = [watch for watch, _ in self._held.values()]
        held = await self._context.watches.beat(watches)
        for watch in watches:
            if (watch.workspace_id, watch.fence) not in held:
                await self._end(watch.workspace_id)

    async def _take(self) -> None:
        room = self._most - len(self._held)
        for watch in await self._context.watches.take(room) if room > 0 else ():
            # It may be one of its own, whose lease was over before it beat.
            await self._end(watch.workspace_id)
            self._begin(watch)

    def _begin(self, watch: Watch) -> None:
        task = asyncio.create_task(
            Watcher(watch, self._context).run(), name=f"watch-{watch.workspace_id}"
        )
        self._held[watch.workspace_id] = (watch, task)
        metrics.LIVE_WATCHES.set(len(self._held))
        get_logger().info("watch_began", workspace=watch.workspace_id, fence=watch.fence)

        def ended(finished: asyncio.Task[None]) -> None:
            entry = self._held.get(watch.workspace_id)
            if entry is not None and entry[1] is finished:
                # Not given back: whoever takes it next does so after the lease, not at once again.
                self._forget(watch.workspace_id)
            if not finished.cancelled():
                _report(finished.exception())

        task.add_done_callback(ended)

    async def _end(self, workspace_id: WorkspaceId) -> None:
        entry = self._held.get(workspace_id)
        if entry is None:
            return
        self._forget(workspace_id)
        entry[1].cancel()
        await asyncio.gather(entry[1], return_exceptions=True)

    def _forget(self, workspace_id: WorkspaceId) -> None:
        del self._held[workspace_id]
        metrics.LIVE_WATCHES.set(len(self._held))


def _report(error: BaseException | None) -> None:
    """Tells of what nobody expected; a lease that was lost is none of that."""
    if error is None:
        return
    unexpected = error.split(_ENDS)[1] if isinstance(error, BaseExceptionGroup) else error
    if unexpected is None or isinstance(unexpected, _ENDS):
        get_logger().info("watch_ended")
    else:
        metrics.LIVE_ERRORS.inc()
        get_logger().error("watch_crashed", exc_info=error)
