"""Encoders on rows of texts without padding, against sentence-transformers on the same weights."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from services.embed.backends import torch_packed
from services.embed.backends.sentence_transformers import load_torch
from services.embed.backends.torch_attention import (
    Segments,
    attend_by_length,
    attend_varlen,
    unsplit,
)
from services.embed.backends.torch_packed import PackedTorchBackend
from services.embed.model import EncodedText, Truncation, Vectors
from tests.support.random_models import POSITIONS, WORDS, save_random_model

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from services.embed.backends.protocol import LoadedModel

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def _texts(seed: int = 0) -> list[str]:
    """Texts of no word to more words than a model reads, in no order, with the padding's own."""
    chance = random.Random(seed)
    lengths = [0, 1, 1, 2, 3, 7, 7, 7, POSITIONS - 3, POSITIONS - 2, POSITIONS, 3 * POSITIONS]
    chance.shuffle(lengths)
    texts = [" ".join(chance.choices(WORDS, k=length)) for length in lengths]
    return [*texts, "word1 <pad> word2 <pad> <pad> word3"]


def _load(folder: Path, attention: str = "auto") -> LoadedModel:
    return load_torch(
        folder, precision="float32", attention=attention, token_budget=0, max_text_chars=1 << 20
    )


def _infer(model: LoadedModel, texts: Sequence[str]) -> Vectors:
    encoded = model.encoder.encode(texts, Truncation.END)
    return model.backend.infer([item.ids for item in encoded if isinstance(item, EncodedText)])


def _library(folder: Path, texts: Sequence[str], max_tokens: int) -> Vectors:
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    model.max_seq_length = max_tokens
    vectors: Vectors = model.encode(list(texts), batch_size=1, normalize_embeddings=True)
    return vectors


def _least_cosine(left: Vectors, right: Vectors) -> float:
    assert left.shape == right.shape
    return float(np.einsum("ij,ij->i", left, right, dtype=np.float64).min())


@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        ("bert", {}),
        ("bert", {"pooling": "cls"}),
        ("bert", {"pooling": "lasttoken", "dense": 16}),
        ("roberta", {}),
        ("roberta", {"pooling": "cls", "dense": 48}),
        ("xlm-roberta", {"pooling": "lasttoken"}),
        ("camembert", {}),
    ],
)
def test_vectors_without_padding_are_the_librarys(
    tmp_path: Path, kind: str, extra: dict[str, Any]
) -> None:
    """Red with positions from zero in RoBERTa, and with those of the whole row in BERT.

    Also red when texts attend to each other, and when the mean counts tokens of a neighbour.
    """
    folder = save_random_model(tmp_path, kind, **extra)
    texts = _texts()

    model = _load(folder)

    assert isinstance(model.backend, PackedTorchBackend)
    assert model.backend.info.padded is False
    assert model.backend.info.identity.max_tokens == POSITIONS
    expected = _library(folder, texts, POSITIONS)
    assert _least_cosine(_infer(model, texts), expected) >= 0.9999
    assert model.backend.info.dimensions == expected.shape[1]


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_vector_without_padding_depends_on_its_own_text_alone(tmp_path: Path, kind: str) -> None:
    model = _load(save_random_model(tmp_path, kind))
    texts = _texts()
    alone = np.concatenate([_infer(model, [text]) for text in texts])

    for seed in range(10):
        chosen = random.Random(seed).choices(range(len(texts)), k=9)
        together = _infer(model, [texts[at] for at in chosen])
        assert _least_cosine(together, alone[chosen]) > 0.99999


@pytest.mark.parametrize(
    ("kind", "extra", "why"),
    [
        ("mpnet", {}, "architecture"),
        ("distilbert", {}, "architecture"),
        ("bert", {"pooling": "max"}, "pooling"),
        ("bert", {"pooling": ("cls", "mean")}, "pooling"),
    ],
)
def test_what_is_not_known_without_padding_runs_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, extra: dict[str, Any], why: str
) -> None:
    folder = save_random_model(tmp_path, kind, **extra)
    texts = _texts()[:-1]  # in padded rows a library's own padding token is a matter of taste

    model = _load(folder)

    assert model.backend.info.padded is True
    assert f'"why": "{why}"' in capsys.readouterr().err
    expected = _library(folder, texts, model.encoder.max_tokens)
    assert _least_cosine(_infer(model, texts), expected) >= 0.9999


def test_attention_that_disagrees_does_not_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A kernel that is wrong on some GPU is found at the start, by the vectors themselves.

    Red when an error of another kind, as another release of torch raises, ends the load.
    """

    def wrong(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments
    ) -> torch.Tensor:
        return attend_by_length(query, key, value.roll(1, dims=0), segments)

    def missing(*_: Any) -> torch.Tensor:
        raise RuntimeError("no kernel image is available")

    def refusing(*_: Any) -> torch.Tensor:
        raise TypeError("got an unexpected keyword argument")

    folder = save_random_model(tmp_path, "bert")
    backends = []
    for attention in (wrong, missing, refusing):
        monkeypatch.setattr(torch_packed, "attention_for", lambda *_, a=attention: a)
        backends.append(_load(folder))

    assert [model.backend.info.padded for model in backends] == [True] * 3
    told = capsys.readouterr().err
    assert "packed_attention_disagrees" in told
    assert told.count("packed_attention_failed") == 2
    texts = _texts()[:-1]
    expected = _library(folder, texts, POSITIONS)
    for model in backends:
        assert _least_cosine(_infer(model, texts), expected) >= 0.9999


def test_padding_can_be_asked_for(tmp_path: Path) -> None:
    """Vectors and identity are the same, so that indexes of either serve both."""
    folder = save_random_model(tmp_path, "roberta", prompts={"query": "word7 word8 "})
    packed, padded = _load(folder), _load(folder, "padded")

    assert padded.backend.info.padded is True
    assert padded.backend.info.identity == packed.backend.info.identity
    assert packed.backend.info.identity.prompts.query == "word7 word8 "
    texts = _texts()
    assert _least_cosine(_infer(packed, texts), _infer(padded, texts)) > 0.9999


def test_attention_by_length_is_attention_text_by_text() -> None:
    torch.manual_seed(1)
    lengths = [3, 1, 1, 5, 5, 5, 2]
    query, key, value = torch.randn(3, sum(lengths), 4, 8)

    result = attend_by_length(query, key, value, Segments(lengths, torch.device("cpu")))

    parts = [part.split(lengths) for part in (query, key, value)]
    expected = [
        torch.nn.functional.scaled_dot_product_attention(*(t.transpose(0, 1) for t in text))
        for text in zip(*parts, strict=True)
    ]
    assert torch.allclose(result, torch.cat([t.transpose(0, 1) for t in expected]), atol=1e-5)


def test_the_gpus_kernel_is_called_as_the_release_of_torch_knows_it() -> None:
    """Red when a release without the word is told not to split, and one with it is not."""

    def of_now(*_: Any, scale: float | None = None, num_splits: int | None = None) -> None: ...

    def of_before(*_: Any, scale: float | None = None) -> None: ...

    assert unsplit(of_now) == {"num_splits": 1}
    assert unsplit(of_before) == {}
    row = torch.empty((5, 2, 8), dtype=torch.float16, device="meta")
    segments = Segments([2, 3], torch.device("meta"))
    assert attend_varlen(row, row, row, segments).shape == row.shape
