"""A served model: one outcome per text whatever the backend does, limits, cancellation, lanes."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from prometheus_client import REGISTRY

from services.embed.backends.hashing import HashingBackend, HashingEncoder
from services.embed.budget import TokenBudget
from services.embed.engine import Engine
from services.embed.errors import BadVectorError, FingerprintMismatchError, TextTooLongError
from services.embed.lanes import LaneTurns
from services.embed.model import (
    Embedding,
    EncodedText,
    Lane,
    Truncation,
    Vectors,
    VectorType,
)
from services.embed.work import Batch, Request, Work
from services.runtime.errors import (
    InvalidRequestError,
    LodestoneError,
    OverloadedError,
    ShuttingDownError,
)
from services.runtime.telemetry import tracer
from tests.unit.embed.harness import (
    DOCUMENT,
    MARKER,
    BadVectorBackend,
    GatedBackend,
    RaisingBackend,
    eventually,
    ids_of,
    served,
)

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

GOOD = [f"def function_{n}(): return {n}" for n in range(40)]
INTERACTIVE = replace(DOCUMENT, lane=Lane.INTERACTIVE)


def _vector(outcome: object) -> Vectors:
    assert isinstance(outcome, Embedding)
    return np.frombuffer(outcome.vector, dtype="<f4")


async def test_outcomes_come_in_the_order_of_the_texts() -> None:
    texts = sorted(GOOD, key=hash)
    async with served(HashingBackend()) as model:
        outcomes = await model.embed(texts, DOCUMENT)

    for text, outcome in zip(texts, outcomes, strict=True):
        expected = HashingBackend().infer([ids_of(text)])[0]
        assert np.array_equal(_vector(outcome), expected)


async def test_a_text_that_the_engine_fails_on_does_not_fail_its_neighbours() -> None:
    """Red without the bisection: all 41 texts fail."""
    backend = RaisingBackend()
    async with served(backend) as model:
        outcomes = await model.embed([*GOOD[:20], MARKER, *GOOD[20:]], DOCUMENT)

    bad = outcomes.pop(20)
    assert isinstance(bad, BadVectorError)
    assert MARKER not in bad.message
    assert all(isinstance(outcome, Embedding) for outcome in outcomes)
    assert len(backend.batches) < 2 * len(GOOD)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda row: row * np.nan,
        lambda row: row * 0,
        lambda row: np.full_like(row, np.inf),
        lambda row: row * 9,
    ],
    ids=["nan", "zero", "infinite", "not-normalised"],
)
async def test_a_vector_that_must_not_be_stored_never_leaves(spoil: object) -> None:
    async with served(BadVectorBackend(spoil)) as model:  # type: ignore[arg-type]
        good, bad = await model.embed([GOOD[0], MARKER], DOCUMENT)

    assert isinstance(good, Embedding)
    assert isinstance(bad, BadVectorError)


class _ShortBackend(HashingBackend):
    """Loses the last row of every batch, or of every row its last number."""

    def __init__(self, *, rows: bool) -> None:
        super().__init__()
        self._rows = rows

    def infer(self, batch: object, _route: str = "") -> Vectors:
        vectors = super().infer(batch)  # type: ignore[arg-type]
        return vectors[:-1] if self._rows else vectors[:, :-1]


@pytest.mark.parametrize("rows", [True, False])
async def test_a_wrong_count_or_size_of_vectors_is_an_error_of_each_text(*, rows: bool) -> None:
    async with served(_ShortBackend(rows=rows)) as model:
        outcomes = await model.embed(GOOD[:5], DOCUMENT)

    assert all(isinstance(outcome, BadVectorError) for outcome in outcomes)


async def test_a_text_that_is_too_long_fails_alone() -> None:
    strict = replace(DOCUMENT, truncation=Truncation.ERROR)
    async with served(HashingBackend()) as model:
        good, bad = await model.embed([GOOD[0], "word " * 5000], strict)
        (cut,) = await model.embed(["word " * 5000], DOCUMENT)

    assert isinstance(good, Embedding)
    assert not good.truncated
    assert isinstance(bad, TextTooLongError)
    assert isinstance(cut, Embedding)
    assert cut.truncated
    assert cut.token_count == model.info.max_tokens


async def test_vector_types_lay_out_the_same_vector() -> None:
    async with served(HashingBackend()) as model:
        by_type = {}
        for vector_type in VectorType:
            (outcome,) = await model.embed([GOOD[0]], replace(DOCUMENT, vector_type=vector_type))
            assert isinstance(outcome, Embedding)
            by_type[vector_type] = outcome.vector

    exact = np.frombuffer(by_type[VectorType.FLOAT32], "<f4")
    half = np.frombuffer(by_type[VectorType.FLOAT16], "<f2").astype("f4")
    small = np.frombuffer(by_type[VectorType.INT8], "i1").astype("f4") / 127
    signs = np.unpackbits(np.frombuffer(by_type[VectorType.BINARY], "u1")).astype(bool)
    assert np.abs(exact - half).max() < 1e-3
    assert np.abs(exact - small).max() <= 0.5 / 127 + 1e-6
    assert np.array_equal(signs, exact > 0)


async def test_options_that_do_not_fit_the_model_are_refused() -> None:
    async with served(HashingBackend()) as model:
        with pytest.raises(InvalidRequestError):
            await model.embed(GOOD[:1], replace(DOCUMENT, dimensions=100))
        with pytest.raises(FingerprintMismatchError) as mismatch:
            await model.embed(GOOD[:1], replace(DOCUMENT, expect_fingerprint="another"))
        with pytest.raises(InvalidRequestError):
            await model.embed(["x"] * (model.info.max_batch_texts + 1), DOCUMENT)
        right = replace(DOCUMENT, expect_fingerprint=model.info.fingerprint, dimensions=384)
        (outcome,) = await model.embed(GOOD[:1], right)

    assert mismatch.value.metadata["actual"] == model.info.fingerprint
    assert isinstance(outcome, Embedding)


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


async def test_every_text_is_counted_once_with_its_outcome() -> None:
    def counted() -> dict[str, float]:
        return {
            name: REGISTRY.get_sample_value(
                "lodestone_embed_texts_total", {"lane": "bulk", "outcome": name}
            )
            or 0.0
            for name in ("ok", "bad_vector", "invalid")
        }

    before = counted()
    strict = replace(DOCUMENT, truncation=Truncation.ERROR)
    async with served(RaisingBackend()) as model:
        await model.embed([GOOD[0], MARKER, "word " * 5000, GOOD[1]], strict)

    grown = {name: value - before[name] for name, value in counted().items()}
    assert grown == {"ok": 2, "bad_vector": 1, "invalid": 1}


async def test_a_forward_points_to_the_calls_that_it_serves(spans: InMemorySpanExporter) -> None:
    """Red without the links: nobody could tell which forward made a slow call slow."""
    backend = GatedBackend()
    async with served(backend) as model:
        with tracer().start_as_current_span("first"):
            first = asyncio.create_task(model.embed(["same"], DOCUMENT))
        await eventually(backend.entered.is_set)
        with tracer().start_as_current_span("second"):
            second = asyncio.create_task(model.embed(["same", "other"], DOCUMENT))
        await eventually(lambda: len(model._batcher._in_flight) == 2)
        backend.gate.set()
        await asyncio.gather(first, second)

    ended = {span.context.span_id: span for span in spans.get_finished_spans() if span.context}
    forwards = [span for span in ended.values() if span.name == "lodestone.embed.forward"]
    served_calls = {
        ended[ended[link.context.span_id].parent.span_id].name  # type: ignore[union-attr]
        for forward in forwards
        for link in forward.links
    }
    assert served_calls == {"first", "second"}
    assert all(forward.parent is None for forward in forwards)
    assert {"lodestone.embed.tokenize", "lodestone.embed.wait"} <= {s.name for s in ended.values()}
    assert all("same" not in str(span.attributes) for span in ended.values())
