"""Wakes those in this process who wait for a run; the database alone is the truth."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import TYPE_CHECKING, Self

from services.runtime.errors import ShuttingDownError

if TYPE_CHECKING:
    from uuid import UUID


class RunSignals:
    """Tells watchers that a run changed, and the dispatcher that one waits.

    A change made by another replica gives no signal here: every wait has a timeout, after which the
    waiter looks at the database.
    """

    def __init__(self) -> None:
        self._changed: dict[UUID, set[asyncio.Event]] = defaultdict(set)
        self._queued = asyncio.Event()
        self._draining = asyncio.Event()

    def notify(self, run_id: UUID) -> None:
        """Wakes the watchers of a run."""
        for event in self._changed.get(run_id, ()):
            event.set()

    def notify_queued(self) -> None:
        """Wakes the dispatcher."""
        self._queued.set()

    def drain(self) -> None:
        """Ends all watches, now and later."""
        self._draining.set()
        for events in self._changed.values():
            for event in events:
                event.set()

    def subscribe(self, run_id: UUID) -> RunSubscription:
        """Returns a subscription; use it as a context manager."""
        return RunSubscription(self, run_id)

    async def wait_queued(self, timeout_seconds: float) -> None:
        """Returns when a run may wait, or when the time is over."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._queued.wait()
        except TimeoutError:
            pass
        self._queued.clear()

    def raise_if_draining(self) -> None:
        """Raises ShuttingDownError once the process drains."""
        if self._draining.is_set():
            raise ShuttingDownError("The server is stopping.", retry_after_seconds=1.0)

    def _add(self, run_id: UUID, event: asyncio.Event) -> None:
        self._changed[run_id].add(event)

    def _discard(self, run_id: UUID, event: asyncio.Event) -> None:
        self._changed[run_id].discard(event)
        if not self._changed[run_id]:
            del self._changed[run_id]


class RunSubscription:
    """Sees every change of a run from its creation on, as one wake-up however many there were."""

    def __init__(self, signals: RunSignals, run_id: UUID) -> None:
        self._signals = signals
        self._run_id = run_id
        self._event = asyncio.Event()

    def __enter__(self) -> Self:
        self._signals._add(self._run_id, self._event)  # noqa: SLF001 - two halves of one thing
        return self

    def __exit__(self, *_: object) -> None:
        self._signals._discard(self._run_id, self._event)  # noqa: SLF001 - as above

    async def wait(self, timeout_seconds: float) -> bool:
        """Returns whether the run changed since the last wait, after at most the timeout.

        Raises:
            ShuttingDownError: the process drains.
        """
        self._signals.raise_if_draining()
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._event.wait()
        except TimeoutError:
            return False
        self._event.clear()
        self._signals.raise_if_draining()
        return True
