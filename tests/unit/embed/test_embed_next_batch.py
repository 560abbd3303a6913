"""What waits goes as soon as a stream is free, to every stream that is."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from services.embed.backends.hashing import HashingBackend
from services.embed.model import Embedding
from tests.unit.embed.harness import DOCUMENT, served

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.embed.model import TokenIds, Vectors

_SECONDS = 10


class _CountedBackend(HashingBackend):
    """A backend of some streams that tells of each batch, and ends one when it may."""

    def __init__(self, streams: int) -> None:
        super().__init__()
        self._info = replace(self._info, concurrency=streams)
        self.begun: list[int] = []
        self._changed = threading.Condition()
        self._may_end = 0

    def infer(self, batch: Sequence[TokenIds], _route: str = "") -> Vectors:
        with self._changed:
            self.begun.append(len(batch))
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._may_end > 0, _SECONDS)
            self._may_end -= 1
        return super().infer(batch)

    def let_end(self, batches: int) -> None:
        with self._changed:
            self._may_end += batches
            self._changed.notify_all()

    def wait_until_begun(self, batches: int) -> bool:
        """Blocks until so many have begun; returns whether they have."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self.begun) >= batches, _SECONDS)


async def test_a_stream_finds_the_next_batch_while_the_loop_is_busy() -> None:
    """Red when a batch is made only once the one before has ended: the device idles meanwhile."""
    backend = _CountedBackend(streams=1)
    async with served(backend, batch_max_texts=4) as model:
        task = asyncio.create_task(model.embed([f"text {n}" for n in range(8)], DOCUMENT))
        assert await asyncio.to_thread(backend.wait_until_begun, 1)
        backend.let_end(1)
        begun = backend.wait_until_begun(2)  # on the loop: nobody settles the first one yet
        backend.let_end(1)
        outcomes = await task

    assert begun
    assert all(isinstance(outcome, Embedding) for outcome in outcomes)
    assert backend.begun == [4, 4]


async def test_what_waits_is_split_over_the_streams_that_are_idle() -> None:
    """Red when a batch takes all that fits: one stream works, the other has nothing."""
    backend = _CountedBackend(streams=2)
    texts = [f"{n} " + "word " * 60 for n in range(16)]
    async with served(backend) as model:
        task = asyncio.create_task(model.embed(texts, DOCUMENT))
        begun = await asyncio.to_thread(backend.wait_until_begun, 2)
        backend.let_end(len(texts))
        outcomes = await task

    assert begun
    assert all(isinstance(outcome, Embedding) for outcome in outcomes)
    assert backend.begun == [8, 8]
