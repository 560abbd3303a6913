"""Identical texts in flight: one forward for all, as soon as one who waits would have it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from services.embed.backends.hashing import HashingBackend
from services.embed.model import Embedding, Lane, Purpose, Truncation, VectorLayout, VectorType
from services.embed.vectors import to_bytes
from tests.unit.embed.harness import DOCUMENT, GatedBackend, eventually, ids_of, served

if TYPE_CHECKING:
    from services.embed.serving import ServedModel

GOOD = [f"def function_{n}(): return {n}" for n in range(40)]
INTERACTIVE = replace(DOCUMENT, lane=Lane.INTERACTIVE)


def waiters_of(model: ServedModel) -> int:
    """Returns how many texts wait: each was encoded, which admission does not tell."""
    return sum(len(work.waiters) for work in model._batcher._in_flight.values())


async def test_identical_texts_in_flight_share_one_forward() -> None:
    backend = GatedBackend()
    async with served(backend) as model:
        first = asyncio.create_task(model.embed(["same"], DOCUMENT))
        await eventually(backend.entered.is_set)
        others = [asyncio.create_task(model.embed(["same", "same"], DOCUMENT)) for _ in range(3)]
        await eventually(lambda: waiters_of(model) == 7)
        others[0].cancel()

        backend.gate.set()
        vectors = {bytes(outcome.vector) for outcome in await first}  # type: ignore[union-attr]
        for task in others[1:]:
            vectors |= {bytes(outcome.vector) for outcome in await task}  # type: ignore[union-attr]

    assert len(vectors) == 1
    assert backend.texts_run == 1


async def test_what_is_made_of_a_vector_is_no_matter_of_its_forward() -> None:
    """Red when a layout is part of what is looked for: the model then runs each of them anew."""
    backend = GatedBackend()
    asked = [
        replace(DOCUMENT, vector_type=kind, dimensions=size, truncation=cut, purpose=purpose)
        for kind in VectorType
        for size in (0, 256)
        for cut in Truncation
        for purpose in Purpose
    ]
    async with served(backend, matryoshka_dimensions=(256,)) as model:
        first = asyncio.create_task(model.embed(["same"], DOCUMENT))
        await eventually(backend.entered.is_set)
        others = [asyncio.create_task(model.embed(["same"], options)) for options in asked]
        await eventually(lambda: waiters_of(model) == 1 + len(asked))
        backend.gate.set()
        await first
        vectors = [outcome for task in others for outcome in await task]

    row = HashingBackend().infer([ids_of("same")])
    for options, outcome in zip(asked, vectors, strict=True):
        layout = VectorLayout(options.vector_type, options.dimensions)
        assert isinstance(outcome, Embedding)
        assert outcome.vector == to_bytes(row, layout)[0]
    assert backend.texts_run == 1


@pytest.mark.parametrize("batch_max_texts", [1, 4])
async def test_a_query_takes_its_text_out_of_bulk_that_is_prepared(batch_max_texts: int) -> None:
    """Red when only what is queued is promoted: later queries run before it, by their weight."""
    backend = GatedBackend()
    async with served(backend, batch_max_texts=batch_max_texts) as model:
        bulk = asyncio.create_task(model.embed(GOOD, DOCUMENT))
        await eventually(backend.entered.is_set)
        ((_, prepared),) = model._batcher._engine._batches[Lane.BULK]
        wanted = prepared.works[0].ids.tolist()
        (text,) = (one for one in GOOD if ids_of(one).tolist() == wanted)
        query = asyncio.create_task(model.embed([text], INTERACTIVE))
        await eventually(lambda: waiters_of(model) == len(GOOD) + 1)
        later = asyncio.create_task(model.embed([f"later {n}" for n in range(6)], INTERACTIVE))
        await eventually(lambda: waiters_of(model) == len(GOOD) + 7)

        backend.gate.set()
        answers = [outcome for task in (bulk, query, later) for outcome in await task]

    assert [wanted in [ids.tolist() for ids in batch] for batch in backend.batches].index(True) == 1
    assert backend.texts_run == len(GOOD) + 6
    assert all(isinstance(outcome, Embedding) for outcome in answers)
    assert not sum(model._batcher._outstanding.values())
