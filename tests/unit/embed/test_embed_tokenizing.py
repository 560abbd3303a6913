"""Whose texts are tokenized next: a call that takes long at it holds up no other."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from services.embed.backends.hashing import HashingBackend, HashingEncoder
from services.embed.model import Embedding, EmbedOptions, Lane, Purpose, Truncation
from tests.unit.embed.harness import DOCUMENT, eventually, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from services.embed.model import EncodedText
    from services.embed.serving import ServedModel
    from services.runtime.errors import LodestoneError

QUERY = EmbedOptions(Purpose.QUERY, Truncation.END, lane=Lane.INTERACTIVE)
SLOW = "slow"
MANY = [f"{SLOW} {number} " + " " * (1 << 16) for number in range(8)]


class _SlowEncoder(HashingEncoder):
    """An encoder that waits at texts which begin with a word until it may go, and notes all."""

    def __init__(self) -> None:
        super().__init__(max_text_chars=1 << 20)
        self.may_go = threading.Event()
        self.seen: list[str] = []

    def encode(
        self, texts: Sequence[str], truncation: Truncation, route: str = "", prompt: str = ""
    ) -> list[EncodedText | LodestoneError]:
        self.seen.extend(text.strip() for text in texts)
        if any(text.startswith(SLOW) for text in texts):
            assert self.may_go.wait(30)
        return super().encode(texts, truncation, route, prompt)


@asynccontextmanager
async def slow_to_tokenize(threads: int) -> AsyncIterator[tuple[ServedModel, _SlowEncoder]]:
    """Yields a model whose encoder waits, and that encoder."""
    async with served(HashingBackend(), tokenizer_threads=threads) as model:
        model._encoder = encoder = _SlowEncoder()
        try:
            yield model, encoder
        finally:
            encoder.may_go.set()


async def test_a_query_waits_for_no_bulk_text_that_is_tokenized() -> None:
    """Red when lanes share threads: two calls of bulk with lines of a megabyte hold all of them."""
    async with slow_to_tokenize(2) as (model, encoder):
        bulk = [asyncio.create_task(model.embed(MANY, DOCUMENT)) for _ in range(3)]
        await eventually(lambda: len(encoder.seen) >= 2)
        async with asyncio.timeout(10):
            (answer,) = await model.embed(["how are lines split"], QUERY)
        encoder.may_go.set()
        await asyncio.gather(*bulk)

    assert isinstance(answer, Embedding)


async def test_calls_of_a_lane_are_tokenized_by_turns() -> None:
    """Red when a call is tokenized in one piece: the last of many texts goes before the one."""
    async with slow_to_tokenize(1) as (model, encoder):
        first = asyncio.create_task(model.embed(MANY, DOCUMENT))
        await eventually(lambda: encoder.seen)
        admitted = model.queued_tokens
        second = asyncio.create_task(model.embed(["one"], DOCUMENT))
        await eventually(lambda: model.queued_tokens > admitted)
        encoder.may_go.set()
        outcomes = [*await first, *await second]

    assert all(isinstance(outcome, Embedding) for outcome in outcomes)
    assert encoder.seen[:2] == [f"{SLOW} 0", "one"]
    assert encoder.seen[2:] == [text.strip() for text in MANY[1:]]


async def test_what_is_left_of_a_cancelled_call_is_not_tokenized() -> None:
    """Red when a call is tokenized in one piece: threads work for minutes for nobody."""
    async with slow_to_tokenize(1) as (model, encoder):
        task = asyncio.create_task(model.embed(MANY, DOCUMENT))
        await eventually(lambda: encoder.seen)
        task.cancel()
        await asyncio.wait((task,))
        encoder.may_go.set()
        await model.embed(["after"], DOCUMENT)

    assert encoder.seen == [f"{SLOW} 0", "after"]
