"""What only a CUDA device can show: `pytest -m gpu`. Without one these are skipped."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from services.embed.backends.protocol import OutOfMemoryError
from services.embed.backends.sentence_transformers import load_torch
from services.embed.backends.torch_packed import PackedTorchBackend
from services.embed.model import EncodedText, Truncation
from tests.unit.embed.harness import bundled_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services.embed.backends.protocol import LoadedModel
    from services.embed.model import TokenIds, Vectors

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def _load(precision: str, attention: str = "auto") -> LoadedModel:
    return load_torch(
        bundled_folder(),
        precision=precision,
        attention=attention,
        token_budget=0,
        max_text_chars=1 << 20,
    )


@pytest.fixture(params=["float16", "bfloat16"])
def model(request: pytest.FixtureRequest) -> Iterator[LoadedModel]:
    """The bundled model on the GPU, without padding."""
    loaded = _load(request.param)
    yield loaded
    loaded.backend.close()


def _ids(model: LoadedModel, count: int = 64) -> list[TokenIds]:
    chance = random.Random(5)
    texts = ["", "x"] + [
        " ".join(chance.choices(["def", "return", "value", "(", ")", "for", "cache"], k=length))
        for length in chance.choices(range(1, 400), k=count - 2)
    ]
    encoded = model.encoder.encode(texts, Truncation.END)
    return [item.ids for item in encoded if isinstance(item, EncodedText)]


def _least_cosine(left: Vectors, right: Vectors) -> float:
    return float(np.einsum("ij,ij->i", left, right, dtype=np.float64).min())


def test_the_bundled_model_runs_without_padding(model: LoadedModel) -> None:
    """Red when the kernel is missing or refuses its arguments: the trial falls back to padding."""
    assert isinstance(model.backend, PackedTorchBackend)


def test_vectors_agree_with_float32(model: LoadedModel) -> None:
    exact = _load("float32")
    ids = _ids(model)

    assert exact.backend.info.padded is True
    assert _least_cosine(model.backend.infer(ids), exact.backend.infer(ids)) > 0.999
    exact.backend.close()


def test_a_vector_does_not_depend_on_its_neighbours(model: LoadedModel) -> None:
    ids = _ids(model)
    alone = np.concatenate([model.backend.infer([one]) for one in ids])

    for seed in range(5):
        chosen = random.Random(seed).choices(range(len(ids)), k=48)
        rows = model.backend.infer([ids[at] for at in chosen])
        assert _least_cosine(rows, alone[chosen]) > 0.9999


def test_the_same_batch_gives_the_same_bytes(model: LoadedModel) -> None:
    """Red when sums by segment are atomic additions in any order."""
    ids = _ids(model)

    assert len({model.backend.infer(ids).tobytes() for _ in range(5)}) == 1


def test_a_result_outlives_the_next_forward(model: LoadedModel) -> None:
    ids = _ids(model)
    first = model.backend.infer(ids)
    kept = first.copy()

    for _ in range(5):
        model.backend.infer(ids[::-1])

    assert np.array_equal(first, kept)


def test_a_batch_beyond_the_memory_is_told_and_a_small_one_runs_after(model: LoadedModel) -> None:
    ids = _ids(model)
    before = model.backend.infer(ids)
    torch.cuda.set_per_process_memory_fraction(0.02)
    try:
        with pytest.raises(OutOfMemoryError):
            model.backend.infer(ids * 2000)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)

    assert np.allclose(model.backend.infer(ids), before, atol=1e-3)
