"""A stream of texts, embedded in groups of whatever has arrived."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.runtime.errors import LodestoneError, ShuttingDownError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from services.embed.model import EmbedOptions, ModelId, Outcome
    from services.embed.registry import ModelRegistry

_GROUP_TEXTS = 128
_MOST_BYTES = 16 << 20
"""Bytes of texts that a stream holds; one text more is read when it holds less."""
_MOST_BYTES_OF_ALL = 16 * _MOST_BYTES
"""Bytes of texts that all streams hold together, but for a text of each."""
_RETRY_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class StreamText:
    """One text of a stream, with the id that its answer will carry."""

    text_id: int
    model_id: ModelId
    options: EmbedOptions
    text: str


@dataclass(frozen=True, slots=True)
class StreamAnswer:
    """How one text of a stream ended."""

    text_id: int
    outcome: Outcome
    fingerprint: str


class HeldTexts:
    """Bytes of texts that all streams hold; one alone may hold its most, many a part each.

    A stream may hold as much as is left (dynamic thresholds, Choudhury and Hahne 1998), so that
    some that nobody answers do not keep another from being read.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._fewer = asyncio.Event()

    def change(self, size: int) -> None:
        """Adds to what is held; negative when something left."""
        self.bytes += size
        if size < 0:
            self._fewer.set()

    def has_room_beside(self, own: int) -> bool:
        """Tells whether a stream that holds so much may read one text more."""
        return own == 0 or own < min(_MOST_BYTES, _MOST_BYTES_OF_ALL - self.bytes)

    async def wait_for_fewer(self) -> None:
        """Returns when something has left."""
        self._fewer.clear()
        await self._fewer.wait()


class EmbedSession:
    """One stream: reads while there is room, answers in any order, and can be asked to end.

    A group holds the texts that arrived while the groups before it were busy, so that a fast caller
    gets full batches and a slow one no delay. At most `max_groups` groups are in flight, one more
    is being answered, and one more is read: a caller that writes more than that, or larger texts
    than a stream may hold, or does not read its answers, is held back by the transport.
    """

    def __init__(
        self,
        registry: ModelRegistry,
        *,
        max_groups: int,
        caller: str = "",
        held: HeldTexts | None = None,
    ) -> None:
        self._registry = registry
        self._held_by_all = held or HeldTexts()
        self._caller = caller
        self._slots = asyncio.Semaphore(max_groups)
        self._unread = asyncio.Semaphore(max_groups + 1)
        """Groups begun whose answers are not all taken: of one that nobody reads no more begin."""
        self._inbox: asyncio.Queue[StreamText | None] = asyncio.Queue(_GROUP_TEXTS)
        self._outbox: asyncio.Queue[list[StreamAnswer] | None] = asyncio.Queue()
        self._held: StreamText | None = None
        self._bytes = 0
        self._reader: asyncio.Task[None] | None = None
        self._stopped = False

    def stop(self) -> None:
        """Reads no more; what was read is answered, then the stream ends UNAVAILABLE."""
        self._stopped = True
        if self._reader is not None:
            self._reader.cancel()

    async def run(self, texts: AsyncIterator[StreamText]) -> AsyncIterator[StreamAnswer]:
        """Yields one answer per text.

        Raises:
            ShuttingDownError: the session was stopped; texts without an answer were not embedded.
        """
        pump = asyncio.create_task(self._pump(texts), name="embed-stream")
        try:
            while (answers := await self._outbox.get()) is not None:
                for answer in answers:
                    yield answer
                self._unread.release()
            await pump
        finally:
            pump.cancel()
            await asyncio.wait((pump,))
            self._hold(-self._bytes)
        if self._stopped:
            raise ShuttingDownError("The server is stopping.", retry_after_seconds=_RETRY_SECONDS)

    async def _pump(self, texts: AsyncIterator[StreamText]) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._read(texts), name="embed-stream-read")
                while group := await self._next_group():
                    tasks.create_task(self._embed(group), name="embed-stream-group")
        finally:
            self._outbox.put_nowait(None)

    async def _read(self, texts: AsyncIterator[StreamText]) -> None:
        """Puts texts into the inbox, then their end, which a stop does not take back."""
        try:
            if not self._stopped:
                self._reader = asyncio.current_task()  # before its first step nobody may end it
                await self._read_all(texts)
        except asyncio.CancelledError:
            if not self._stopped:
                raise
        finally:
            self._reader = None
        await self._inbox.put(None)

    async def _read_all(self, texts: AsyncIterator[StreamText]) -> None:
        async for text in texts:
            self._hold(sys.getsizeof(text.text))
            await self._inbox.put(text)
            while not self._held_by_all.has_room_beside(self._bytes):
                await self._held_by_all.wait_for_fewer()

    def _hold(self, size: int) -> None:
        self._bytes += size
        self._held_by_all.change(size)

    async def _next_group(self) -> list[StreamText]:
        """Waits for a slot and a text, then takes all that fit with it; empty at the end."""
        await self._unread.acquire()
        await self._slots.acquire()
        first = self._held or await self._inbox.get()
        self._held = None
        group: list[StreamText] = []
        if first is None:
            return group
        following: StreamText | None = first
        while following is not None:
            if following.model_id != first.model_id or following.options != first.options:
                self._held = following
                break
            group.append(following)
            if len(group) == _GROUP_TEXTS or self._inbox.empty():
                break
            following = self._inbox.get_nowait()
            if following is None:
                self._inbox.put_nowait(None)  # the end, for the next round
        return group

    async def _embed(self, group: list[StreamText]) -> None:
        fingerprint = ""
        outcomes: list[Outcome]
        try:
            with self._registry.borrowed(group[0].model_id) as model:
                fingerprint = model.info.fingerprint
                outcomes = await model.embed(
                    [item.text for item in group],
                    group[0].options,
                    wait_for_room=True,
                    caller=self._caller,
                )
        except LodestoneError as error:
            outcomes = [error] * len(group)
        finally:
            self._slots.release()
            self._hold(-sum(sys.getsizeof(item.text) for item in group))
        self._outbox.put_nowait(
            [
                StreamAnswer(item.text_id, outcome, fingerprint)
                for item, outcome in zip(group, outcomes, strict=True)
            ]
        )
