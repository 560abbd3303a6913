"""Bounds the texts that a process holds at once: fetched, in the model, or being committed."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from services.indexer.model import ClaimedNode


def text_bytes(nodes: Sequence[ClaimedNode]) -> int:
    """Returns how many bytes of files the texts of nodes are read from; no text is longer."""
    return sum(sum(node.ranges[1::2]) - sum(node.ranges[::2]) for node in nodes)


class TextBudget:
    """Lets so many bytes be in flight, who came first goes first.

    A node with a longer text than all that is in flight may be goes alone.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._free = limit_bytes
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def parts(self, nodes: Sequence[ClaimedNode]) -> Iterator[list[ClaimedNode]]:
        """Yields nodes in their order, in parts that may be in flight each."""
        part: list[ClaimedNode] = []
        size = 0
        for node in nodes:
            own = text_bytes([node])
            if part and size + own > self._limit:
                yield part
                part, size = [], 0
            part.append(node)
            size += own
        if part:
            yield part

    @asynccontextmanager
    async def hold(self, nodes: Sequence[ClaimedNode]) -> AsyncIterator[None]:
        """Yields when the texts of a part fit beside the others; they are held until it ends.

        Whoever holds some must not ask for more.
        """
        size = min(text_bytes(nodes), self._limit)
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            self._leave(size, turn)
            raise
        try:
            yield
        finally:
            self._free += size
            self._admit()

    def _leave(self, size: int, turn: asyncio.Future[None]) -> None:
        """Takes back a wish; its turn may have come in the moment in which it was cancelled."""
        if (size, turn) in self._waiting:
            self._waiting.remove((size, turn))
        elif not turn.cancelled():
            self._free += size
        self._admit()

    def _admit(self) -> None:
        while self._waiting and (self._waiting[0][1].done() or self._waiting[0][0] <= self._free):
            size, turn = self._waiting.popleft()
            if not turn.done():  # else it is cancelled, and about to leave
                self._free -= size
                turn.set_result(None)
