"""A served model: one outcome per text, whatever the backend does."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from prometheus_client import REGISTRY

from services.embed.backends.hashing import HashingBackend
from services.embed.errors import BadVectorError, FingerprintMismatchError, TextTooLongError
from services.embed.model import Embedding, Truncation, Vectors, VectorType
from services.runtime.errors import InvalidRequestError
from services.runtime.telemetry import tracer
from tests.unit.embed.harness import (
    DOCUMENT,
    GOOD,
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
