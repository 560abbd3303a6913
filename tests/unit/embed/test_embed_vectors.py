"""What leaves as bytes: cut, of length one again, in every type; and what must never leave."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from services.embed.backends.hashing import HashingBackend
from services.embed.errors import BadVectorError
from services.embed.matryoshka import declared_sizes, shorter_sizes
from services.embed.model import Embedding, VectorLayout, Vectors, VectorType
from services.embed.vectors import good_rows, to_bytes
from services.runtime.errors import InvalidRequestError
from tests.unit.embed.harness import (
    DOCUMENT,
    MARKER,
    BadVectorBackend,
    GatedBackend,
    eventually,
    ids_of,
    served,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TEXTS = [f"def function_{n}(first, second): return first * {n} + second" for n in range(20)]
CUT = 64
EVERY_TYPE = pytest.mark.parametrize("vector_type", list(VectorType))


def _read(data: bytes, vector_type: VectorType, dimensions: int) -> Vectors:
    """Returns the numbers that a caller reads from a vector's bytes."""
    match vector_type:
        case VectorType.FLOAT32:
            row = np.frombuffer(data, "<f4")
        case VectorType.FLOAT16:
            row = np.frombuffer(data, "<f2").astype("f4")
        case VectorType.INT8:
            row = np.frombuffer(data, "i1").astype("f4") / 127
        case VectorType.BINARY:
            bits = np.unpackbits(np.frombuffer(data, "u1"))
            assert not bits[dimensions:].any()
            row = bits[:dimensions].astype("f4") * 2 - 1
            row /= np.linalg.norm(row)
    assert len(row) == dimensions
    return row


@EVERY_TYPE
@pytest.mark.parametrize("dimensions", [0, 8, 100, CUT])
def test_a_row_of_any_length_has_length_one_in_every_type(
    vector_type: VectorType, dimensions: int
) -> None:
    """Red when a cut row is not normalised again: its norm is then about 0.4."""
    rows = np.random.default_rng(7).normal(size=(20, 384)).astype("f4")
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)

    packed = to_bytes(rows, VectorLayout(vector_type, dimensions))

    for data, row in zip(packed, rows, strict=True):
        exact = row[: dimensions or None]
        got = _read(data, vector_type, len(exact))
        assert abs(np.linalg.norm(got) - 1) < 0.02
        if vector_type is VectorType.BINARY:
            assert np.array_equal(got > 0, exact > 0)
        else:
            cosine = got @ exact / np.linalg.norm(exact) / np.linalg.norm(got)
            assert cosine > (0.998 if vector_type is VectorType.INT8 else 0.999999)


def test_cut_vectors_rank_as_their_directions_do() -> None:
    """The fault of others: inner products of vectors that were cut and not normalised again.

    The second row keeps more of its length than the first, which is the nearer one.
    """
    rows = np.array([[0.6, 0.0, 0.8, 0.0], [0.7, 0.7, 0.0, 0.1414], [1.0, 0.0, 0.0, 0.0]], "f4")

    near, far, query = (
        np.frombuffer(data, "<f4") for data in to_bytes(rows, VectorLayout(VectorType.FLOAT32, 2))
    )

    assert query @ near > query @ far
    assert query @ rows[0][:2] < query @ rows[1][:2]


@EVERY_TYPE
def test_a_row_that_the_cut_leaves_without_direction_is_empty(vector_type: VectorType) -> None:
    rows = np.array([[0, 0, 0, 1], [0.6, 0.8, 0, 0]], dtype="f4")

    lost, kept = to_bytes(rows, VectorLayout(vector_type, 2))

    assert lost == b""
    assert kept


@EVERY_TYPE
@pytest.mark.parametrize("dimensions", [0, CUT])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda row: row * np.nan,
        lambda row: np.where(np.arange(len(row)) == CUT + 9, np.nan, row),
        lambda row: row * 0,
        lambda row: np.full_like(row, np.inf),
        lambda row: row * 9,
        lambda row: row * 1e-3,
    ],
    ids=["nan", "one-nan-beyond-the-cut", "zero", "infinite", "too-long", "too-short"],
)
async def test_a_vector_that_must_not_be_stored_leaves_in_no_type(
    spoil: Callable[[Vectors], Vectors], dimensions: int, vector_type: VectorType
) -> None:
    """Red when rows are checked after they are laid out: int8 and binary hide every NaN."""
    options = replace(DOCUMENT, vector_type=vector_type, dimensions=dimensions)
    async with served(BadVectorBackend(spoil), matryoshka_dimensions=(CUT,)) as model:
        good, bad = await model.embed([TEXTS[0], MARKER], options)

    assert isinstance(good, Embedding)
    assert isinstance(bad, BadVectorError)


class _EmptyFront(HashingBackend):
    """Answers the marker with a good vector whose front is zero."""

    def infer(self, batch: object, _route: str = "") -> Vectors:
        rows = super().infer(batch)  # type: ignore[arg-type]
        rows[0] = 0
        rows[0, -1] = 1
        return rows


@EVERY_TYPE
async def test_a_text_whose_cut_vector_is_zero_fails_alone(vector_type: VectorType) -> None:
    cut = replace(DOCUMENT, vector_type=vector_type, dimensions=CUT)
    async with served(_EmptyFront(), matryoshka_dimensions=(CUT,)) as model:
        bad, good = await model.embed(["a", "b c d e f g"], cut)
        (whole,) = await model.embed(["a"], replace(cut, dimensions=0))

    assert isinstance(bad, BadVectorError)
    assert isinstance(good, Embedding)
    assert isinstance(whole, Embedding)


@pytest.mark.parametrize("shape", [(3, 383), (3, 385), (3, 0), (3,)])
def test_rows_of_a_wrong_size_are_never_good(shape: tuple[int, ...]) -> None:
    assert not any(good_rows(np.ones(shape, "f4"), dimensions=384))


async def test_a_batch_of_several_layouts_gives_each_text_its_own() -> None:
    layouts = [VectorLayout(kind, size) for kind in VectorType for size in (0, CUT)]
    backend = GatedBackend()
    async with served(backend, matryoshka_dimensions=(CUT,)) as model:
        first = asyncio.create_task(model.embed(["first"], DOCUMENT))
        await eventually(backend.entered.is_set)
        calls = [
            asyncio.create_task(
                model.embed(
                    [text],
                    replace(DOCUMENT, vector_type=lay.vector_type, dimensions=lay.dimensions),
                )
            )
            for text, lay in zip(TEXTS, layouts, strict=False)
        ]
        await eventually(lambda: len(model._batcher._in_flight) == 1 + len(calls))
        backend.gate.set()
        await first
        outcomes = [outcome for call in calls for outcome in await call]

    rows = HashingBackend().infer([ids_of(text) for text in TEXTS[: len(layouts)]])
    for row, lay, outcome in zip(rows, layouts, outcomes, strict=True):
        assert isinstance(outcome, Embedding)
        assert outcome.vector == to_bytes(row[None], lay)[0]


async def test_a_size_that_is_not_allowed_is_refused_with_those_that_are() -> None:
    async with served(HashingBackend(), matryoshka_dimensions=(256, CUT)) as model:
        with pytest.raises(InvalidRequestError) as refusal:
            await model.embed(TEXTS[:1], replace(DOCUMENT, dimensions=100))
        own = await model.embed(TEXTS[:1], replace(DOCUMENT, dimensions=384))
        unnamed = await model.embed(TEXTS[:1], DOCUMENT)

    assert refusal.value.metadata["options.dimensions"] == "must be 0 or one of 64, 256, 384"
    assert own == unnamed


def test_what_a_model_says_of_its_sizes_counts_before_the_settings(tmp_path: Path) -> None:
    assert declared_sizes(tmp_path) == []
    (tmp_path / "config.json").write_text('{"matryoshka_dimensions": [128, 64, 384, "x", 9000]}')

    declared = declared_sizes(tmp_path)

    assert shorter_sizes(declared, (32,), dimensions=384) == (64, 128)
    assert shorter_sizes((), (32, 384, 500), dimensions=384) == (32,)


@pytest.mark.parametrize("content", ["[1]", "{", '{"matryoshka_dimensions": "all"}', "null"])
def test_a_config_that_says_something_else_declares_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)

    assert declared_sizes(tmp_path) == []
