"""A stream that nobody answers or reads is held back: neither texts nor vectors pile up."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import pytest

from services.embed.model import EmbedOptions, ModelId, Purpose
from services.embed.streaming import EmbedSession, HeldTexts, StreamText
from services.runtime.errors import ShuttingDownError
from tests.unit.embed.harness import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from services.embed.registry import ModelRegistry

_TEXTS = 20_000
_GROUPS = 3
_GROUP_TEXTS = 128
_ROUNDS = 200
"""Rounds of the loop in which nothing may happen any more."""


@dataclass
class CountingModels:
    """A registry whose one model embeds at once and counts."""

    embedded: int = 0
    may_embed: asyncio.Event = field(default_factory=asyncio.Event)
    info: Any = field(default_factory=lambda: type("Info", (), {"fingerprint": "f"}))

    @contextmanager
    def borrowed(self, model_id: ModelId) -> Iterator[CountingModels]:
        assert model_id == "m"
        yield self

    async def embed(
        self, texts: Sequence[str], options: Any, *, wait_for_room: bool, caller: str
    ) -> list[Any]:
        assert options is not None
        assert caller == "c"
        assert wait_for_room
        await self.may_embed.wait()
        self.embedded += len(texts)
        return [None] * len(texts)


async def test_a_caller_who_takes_no_answers_is_read_no_further() -> None:
    """Red without the count of groups whose answers are not taken: all texts are embedded."""
    models = CountingModels()
    models.may_embed.set()
    session = EmbedSession(cast("ModelRegistry", models), max_groups=_GROUPS, caller="c")
    options = EmbedOptions(purpose=Purpose.DOCUMENT)
    read = 0

    async def texts() -> AsyncIterator[StreamText]:
        nonlocal read
        for number in range(_TEXTS):
            read += 1
            yield StreamText(number, ModelId("m"), options, "text")

    async with aclosing(cast("Any", session.run(texts()))) as answers:
        await anext(answers)
        quiet, before = 0, read
        while quiet < _ROUNDS:
            await asyncio.sleep(0)
            quiet, before = (quiet + 1, before) if read == before else (0, read)
        held = models.embedded

        assert 0 < held <= (_GROUPS + 2) * _GROUP_TEXTS
        assert read <= held + 2 * _GROUP_TEXTS + 2
        answered = 1 + len([answer async for answer in answers])

    assert answered == models.embedded == read == _TEXTS


@pytest.mark.parametrize("sign", ["x", "🎉"])
async def test_a_stream_holds_no_more_of_large_texts_than_of_small_ones(sign: str) -> None:
    """Red when texts are counted alone: some 900 of any size are held while the model is busy."""
    models = CountingModels()
    session = EmbedSession(cast("ModelRegistry", models), max_groups=_GROUPS, caller="c")
    options = EmbedOptions(purpose=Purpose.DOCUMENT)
    large, count, read = sign * ((1 << 20) // len(sign.encode())), 100, 0

    async def texts() -> AsyncIterator[StreamText]:
        nonlocal read
        for number in range(count):
            read += 1
            yield StreamText(number, ModelId("m"), options, large)

    async with aclosing(cast("Any", session.run(texts()))) as answers:
        first = asyncio.ensure_future(anext(answers))
        quiet, before = 0, -1
        while quiet < _ROUNDS:
            await asyncio.sleep(0)
            quiet, before = (quiet + 1, before) if read == before else (0, read)
        held = read
        models.may_embed.set()
        await first
        answered = 1 + len([answer async for answer in answers])

    assert held <= 16
    assert answered == models.embedded == count


async def test_many_streams_hold_no_more_than_some_and_each_holds_a_part() -> None:
    """Red when each stream holds what one may: so many calls, so many times 16 MiB."""
    models, held = CountingModels(), HeldTexts()
    options = EmbedOptions(purpose=Purpose.DOCUMENT)
    streams, count, read = 64, 20, [0] * 64
    large = "x" * (1 << 20)

    async def texts(stream: int) -> AsyncIterator[StreamText]:
        for number in range(count):
            read[stream] += 1
            yield StreamText(number, ModelId("m"), options, large)

    async def answered(stream: int) -> int:
        session = EmbedSession(
            cast("ModelRegistry", models), max_groups=_GROUPS, caller="c", held=held
        )
        return len([answer async for answer in session.run(texts(stream))])

    tasks = [asyncio.create_task(answered(stream)) for stream in range(streams)]
    quiet, before = 0, -1
    while quiet < _ROUNDS:
        await asyncio.sleep(0)
        quiet, before = (quiet + 1, before) if sum(read) == before else (0, sum(read))
    most, least = sum(read), min(read)
    models.may_embed.set()
    answers = await asyncio.gather(*tasks)

    assert most <= 256 + streams
    assert least >= 1
    assert answers == [count] * streams
    assert held.bytes == 0


async def test_a_stream_that_is_cancelled_holds_nothing_any_more() -> None:
    """Red when what it had read counts for ever: streams that come later are read less and less."""
    models, held = CountingModels(), HeldTexts()
    session = EmbedSession(cast("ModelRegistry", models), max_groups=_GROUPS, caller="c", held=held)
    options = EmbedOptions(purpose=Purpose.DOCUMENT)

    async def texts() -> AsyncIterator[StreamText]:
        for number in range(_TEXTS):
            yield StreamText(number, ModelId("m"), options, "text")

    async with aclosing(cast("Any", session.run(texts()))) as answers:
        first = asyncio.ensure_future(anext(answers))
        await eventually(lambda: held.bytes)
        first.cancel()
        await asyncio.wait((first,))

    assert held.bytes == 0


@pytest.mark.parametrize("rounds", range(6))
async def test_a_stop_ends_a_stream_however_early_it_comes(rounds: int) -> None:
    """Red when the reader is ended before its first step: nothing tells the rest of the end."""
    session = EmbedSession(cast("ModelRegistry", CountingModels()), max_groups=_GROUPS)

    async def texts() -> AsyncIterator[StreamText]:
        await asyncio.Event().wait()
        yield StreamText(0, ModelId("m"), EmbedOptions(purpose=Purpose.DOCUMENT), "never")

    answers = asyncio.ensure_future(anext(session.run(texts())))
    for _ in range(rounds):
        await asyncio.sleep(0)
    session.stop()

    async with asyncio.timeout(5):
        with pytest.raises(ShuttingDownError):
            await answers


async def test_a_stop_answers_what_was_read_when_there_is_no_more_to_read() -> None:
    """Red when a stop takes back the end of the texts, which waits for room behind them."""
    models = CountingModels()
    session = EmbedSession(cast("ModelRegistry", models), max_groups=_GROUPS, caller="c")
    read = 0

    async def texts() -> AsyncIterator[StreamText]:
        nonlocal read
        while not session._inbox.full():
            yield StreamText(read, ModelId("m"), EmbedOptions(purpose=Purpose.DOCUMENT), "text")
            read += 1
            await asyncio.sleep(0)  # groups begin, until there is no slot for another

    answered = 0

    async def take_all() -> None:
        nonlocal answered
        async for _ in session.run(texts()):
            answered += 1

    taking = asyncio.ensure_future(take_all())
    await eventually(session._inbox.full)
    for _ in range(_ROUNDS):
        await asyncio.sleep(0)
    session.stop()
    models.may_embed.set()

    async with asyncio.timeout(5):
        with pytest.raises(ShuttingDownError):
            await taking
    assert answered == read
