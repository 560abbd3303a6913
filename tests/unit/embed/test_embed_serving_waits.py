"""A served model while its engine is busy: who waits, who is refused, who goes first."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from typing import Any

import pytest

from services.embed.backends.hashing import HashingBackend, HashingEncoder
from services.embed.budget import TokenBudget
from services.embed.engine import Engine
from services.embed.lanes import LaneTurns
from services.embed.model import Embedding, EncodedText, Lane
from services.embed.work import Batch, Request, Work
from services.runtime.errors import LodestoneError, OverloadedError, ShuttingDownError
from tests.unit.embed.harness import DOCUMENT, GOOD, GatedBackend, eventually, ids_of, served

INTERACTIVE = replace(DOCUMENT, lane=Lane.INTERACTIVE)


async def test_a_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    backend = GatedBackend()
    async with served(backend, queue_tokens=1024) as model:
        waiting = asyncio.create_task(model.embed(["word " * 800], DOCUMENT))
        await eventually(backend.entered.is_set)

        with pytest.raises(OverloadedError) as refusal:
            await model.embed(["other " * 800], DOCUMENT)

        backend.gate.set()
        await waiting
        (outcome,) = await model.embed(["other " * 800], DOCUMENT)
    assert (refusal.value.retry_after_seconds or 0) > 0
    assert isinstance(outcome, Embedding)


async def test_the_queue_counts_bytes_and_not_characters() -> None:
    backend = GatedBackend()
    async with served(backend, queue_bytes=1 << 20) as model:
        waiting = asyncio.create_task(model.embed(["🎉" * 200_000], DOCUMENT))
        await eventually(backend.entered.is_set)
        with pytest.raises(OverloadedError):
            await model.embed(["🚀" * 200_000], DOCUMENT)
        backend.gate.set()
        await waiting


async def test_a_stream_waits_for_room_instead() -> None:
    backend = GatedBackend()
    async with served(backend, queue_tokens=1024) as model:
        first = asyncio.create_task(model.embed(["word " * 800], DOCUMENT))
        await eventually(backend.entered.is_set)
        second = asyncio.create_task(model.embed(["other " * 800], DOCUMENT, wait_for_room=True))

        backend.gate.set()

        assert isinstance((await first)[0], Embedding)
        assert isinstance((await second)[0], Embedding)


async def test_a_request_larger_than_the_queue_is_served_when_nothing_else_waits() -> None:
    async with served(HashingBackend(), queue_tokens=1024) as model:
        (outcome,) = await model.embed(["word " * 2000], DOCUMENT)

    assert isinstance(outcome, Embedding)


async def test_cancelled_texts_are_dropped_before_their_forward() -> None:
    """Red when the engine does not look: it runs all 41 texts."""
    backend = GatedBackend()
    async with served(backend) as model:
        running = asyncio.create_task(model.embed(["first"], DOCUMENT))
        await eventually(backend.entered.is_set)
        cancelled = asyncio.create_task(model.embed(GOOD, DOCUMENT))
        await eventually(lambda: _waiting_or_prepared(model) > 0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled

        backend.gate.set()
        await running
        (outcome,) = await model.embed(["last"], DOCUMENT)

    assert isinstance(outcome, Embedding)
    assert backend.texts_run == 2
    assert model._admission.tokens == 0


async def test_callers_that_come_and_go_leave_nothing_behind_while_the_engine_is_busy() -> None:
    """Red when what waits stays queued until its turn: no bound holds it, as none counts it."""
    backend = GatedBackend()
    async with served(backend, batch_max_texts=4, queue_tokens=1024) as model:
        running = asyncio.create_task(model.embed(["first"], DOCUMENT))
        await eventually(backend.entered.is_set)
        batcher = model._batcher
        for number in range(30):
            before = len(batcher._in_flight)
            texts = [f"text {number} {n}" for n in range(16)]
            call = asyncio.create_task(model.embed(texts, DOCUMENT))
            await eventually(lambda before=before: len(batcher._in_flight) > before)  # type: ignore[misc]
            call.cancel()
            await asyncio.wait((call,))
        kept, queued = len(batcher._in_flight), sum(map(len, batcher._lanes.values()))
        backend.gate.set()
        await running

    assert kept <= 1 + 4  # what runs, and what is prepared
    assert queued == 0


def _waiting_or_prepared(model: object) -> float:
    return len(model._batcher._in_flight) - 1  # type: ignore[attr-defined]


async def test_an_interactive_text_overtakes_bulk_that_has_not_started() -> None:
    backend = GatedBackend()
    async with served(backend, batch_max_texts=4) as model:
        bulk = asyncio.create_task(model.embed(GOOD, DOCUMENT))
        await eventually(backend.entered.is_set)
        query = asyncio.create_task(model.embed(["query"], INTERACTIVE))
        await eventually(lambda: len(model._batcher._in_flight) == len(GOOD) + 1)

        backend.gate.set()
        await query
        await bulk

    position = [
        len(batch) == 1 and (batch[0] == ids_of("query")).all() for batch in backend.batches
    ]
    assert position.index(True) == 1


async def test_both_lanes_run_by_their_weights() -> None:
    """Red when one lane always goes first: the order is then b, all q, all b."""
    backend = GatedBackend()
    done: list[Batch] = []
    turns = LaneTurns({Lane.INTERACTIVE: 2.0, Lane.BULK: 1.0}, max_age_seconds=60)
    engine = Engine(
        backend, lambda batch, *_: done.append(batch), turns=turns, budget=TokenBudget(1024)
    )
    request = Request(count=9)

    def submit(serial: int, lane: Lane) -> None:
        ids = ids_of(f"text {serial}")
        work = Work(serial, (ids.tobytes(), ""), ids, lane)
        work.waiters.append((request, serial))
        engine.submit(Batch([work], lane))

    submit(0, Lane.BULK)
    await eventually(backend.entered.is_set)
    for serial in range(1, 4):
        submit(serial, Lane.BULK)
    for serial in range(4, 9):
        submit(serial, Lane.INTERACTIVE)
    backend.gate.set()
    await eventually(lambda: len(done) == 9)
    await asyncio.to_thread(engine.close)

    order = "".join("q" if batch.lane is Lane.INTERACTIVE else "b" for batch in done)
    assert order == "bqqqbqqbb"


async def test_the_loop_stays_free_while_the_model_runs() -> None:
    backend = GatedBackend()
    async with served(backend) as model:
        task = asyncio.create_task(model.embed(GOOD, DOCUMENT))
        await eventually(backend.entered.is_set)
        beats = 0
        for _ in range(100):
            await asyncio.sleep(0)
            beats += 1
        assert not task.done()
        backend.gate.set()
        await task

    assert beats == 100


class _HeldEncoder(HashingEncoder):
    """Tokenizes when the test says so."""

    def __init__(self) -> None:
        super().__init__(max_text_chars=1000)
        self.may_go = threading.Event()

    def encode(self, *given: Any) -> list[EncodedText | LodestoneError]:
        assert self.may_go.wait(30)
        return super().encode(*given)


async def test_the_loop_stays_free_while_texts_are_tokenized() -> None:
    """Red when they are tokenized on the loop: it stands still, and nobody lets the encoder go."""
    async with served(HashingBackend()) as model:
        model._encoder = encoder = _HeldEncoder()
        task = asyncio.create_task(model.embed(GOOD, DOCUMENT))
        for _ in range(100):
            await asyncio.sleep(0)
        assert not task.done()
        encoder.may_go.set()

        assert all(isinstance(outcome, Embedding) for outcome in await task)


async def test_whoever_waits_is_told_when_the_model_is_unloaded() -> None:
    backend = GatedBackend()
    async with served(backend, batch_max_texts=1) as model:
        task = asyncio.create_task(model.embed(GOOD, DOCUMENT))
        await eventually(backend.entered.is_set)
        closing = asyncio.create_task(model._batcher.close())
        await eventually(lambda: model._batcher._closed)
        backend.gate.set()
        await closing
        outcomes = await task

        with pytest.raises(ShuttingDownError):
            await model.embed(GOOD, DOCUMENT)

    assert {type(outcome) for outcome in outcomes} == {Embedding, ShuttingDownError}
