"""Forwards of fixed shapes against the ordinary ones without padding, in float32 on the CPU."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from services.embed.backends.torch_attention import attend_by_length, attend_varlen
from services.embed.backends.torch_packed import to_host
from services.embed.backends.torch_static import Bucket, StaticEncoder, buckets_up_to
from services.embed.backends.torch_varlen import PackedEncoder
from tests.support.random_models import POSITIONS, WORDS, save_random_model

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from services.embed.backends.torch_attention import Attention
    from services.embed.model import TokenIds, Vectors

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

_BUDGET = 400
_KINDS: list[tuple[str, dict[str, Any]]] = [
    ("bert", {}),
    ("bert", {"pooling": "cls", "dense": 16}),
    ("roberta", {}),
    ("xlm-roberta", {"pooling": "lasttoken"}),
]


def _static(
    folder: Path, kind: str, attention: Attention = attend_by_length, **extra: Any
) -> StaticEncoder:
    saved = save_random_model(folder, kind, **extra)
    model = SentenceTransformer(str(saved), device="cpu", local_files_only=True)
    encoder = PackedEncoder(model.float().eval(), attention).eval()
    return StaticEncoder(encoder, buckets_up_to(_BUDGET, POSITIONS))


def _text(chance: random.Random, tokens: int) -> TokenIds:
    """Returns ids of any token, the padding's own among them."""
    return np.array([chance.randrange(len(WORDS) + 5) for _ in range(tokens)], dtype=np.int64)


def _batch(chance: random.Random, *lengths: int) -> list[TokenIds]:
    return [_text(chance, length) for length in lengths]


def _cut(chance: random.Random, tokens: int, most_texts: int) -> list[int]:
    """Returns lengths of texts that add up to a number of tokens."""
    lengths: list[int] = []
    while tokens:
        least = -(-tokens // (most_texts - len(lengths)))
        lengths.append(min(tokens, chance.randint(least, POSITIONS)))
        tokens -= lengths[-1]
    return lengths


def _rows(static: StaticEncoder, batch: Sequence[TokenIds]) -> Vectors:
    bucket = static.bucket_of(batch)
    assert bucket is not None
    with torch.inference_mode():
        static.fill(bucket, batch)
        static.run(bucket)
        return to_host(static.rows(len(batch)), normalised=False)


def _ordinary(static: StaticEncoder, batch: Sequence[TokenIds]) -> Vectors:
    with torch.inference_mode():
        return to_host(static.encoder(batch))


def _assert_same(rows: Vectors, expected: Vectors) -> None:
    assert rows.shape == expected.shape
    assert np.abs(rows - expected).max() <= 1e-5
    assert np.einsum("ij,ij->i", rows, expected, dtype=np.float64).min() >= 0.99999


@pytest.mark.parametrize(("kind", "extra"), _KINDS)
def test_rows_are_those_of_the_ordinary_forward(
    tmp_path: Path, kind: str, extra: dict[str, Any]
) -> None:
    """Red with a segment's bound one token late, and with positions that run through the row."""
    static = _static(tmp_path, kind, **extra)
    chance = random.Random(3)
    batches = [_batch(chance, 1), _batch(chance, POSITIONS), _batch(chance, *[1] * 100)]
    below = 0
    for bucket in static.buckets:
        full = _cut(chance, bucket.tokens, bucket.texts)
        part = _cut(chance, chance.randint(below + 1, bucket.tokens), bucket.texts)
        batches += [_batch(chance, *full), _batch(chance, *part)]
        below = bucket.tokens

    for batch in batches:
        _assert_same(_rows(static, batch), _ordinary(static, batch))
    used = [static.bucket_of(batch) for batch in batches]
    assert set(used) == set(static.buckets)
    exact = [bucket for bucket, batch in zip(used, batches, strict=True) if bucket is not None
             and sum(map(len, batch)) == bucket.tokens]  # fmt: skip
    assert len(exact) >= len(static.buckets)


@pytest.mark.parametrize(("kind", "extra"), _KINDS)
def test_what_lies_in_the_padding_does_not_matter(
    tmp_path: Path, kind: str, extra: dict[str, Any]
) -> None:
    """Red when the last text's segment reaches into the padding."""
    static = _static(tmp_path, kind, **extra)
    chance = random.Random(4)
    batch = _batch(chance, 5, 30, POSITIONS, 1)
    bucket = static.bucket_of(batch)
    assert bucket is not None
    clean = _rows(static, batch)
    tokens = sum(map(len, batch))
    with torch.inference_mode():
        for _ in range(5):
            inputs = static.inputs(bucket)
            garbage = torch.from_numpy(_text(chance, bucket.tokens - tokens))
            inputs.ids[tokens:] = garbage
            inputs.positions[tokens:] = garbage % POSITIONS
            static.run(bucket)
            assert np.array_equal(to_host(static.rows(4), normalised=False), clean)


def test_a_row_does_not_depend_on_its_neighbours(tmp_path: Path) -> None:
    static = _static(tmp_path, "bert")
    chance = random.Random(5)
    texts = _batch(chance, 1, 2, 9, 9, 20, POSITIONS - 1, POSITIONS)
    alone = np.concatenate([_rows(static, [text]) for text in texts])

    for _ in range(10):
        chosen = chance.choices(range(len(texts)), k=8)
        _assert_same(_rows(static, [texts[at] for at in chosen]), alone[chosen])


def test_rows_without_a_text_are_zero_and_a_result_outlives_the_next_batch(tmp_path: Path) -> None:
    """Red when rows of padding are left as they are, and when rows are views of the static ones."""
    static = _static(tmp_path, "bert")
    chance = random.Random(6)
    many = _batch(chance, *[10] * 12)
    first = _rows(static, many)
    kept = first.copy()

    _rows(static, _batch(chance, 90 - POSITIONS, POSITIONS))

    assert np.array_equal(first, kept)
    bucket = static.bucket_of(_batch(chance, 42, POSITIONS))
    assert bucket is not None
    rows = static.rows(bucket.texts)
    assert rows[:2].any(dim=1).all()
    assert not rows[2:].any()


def test_what_has_no_room_takes_a_larger_bucket_or_none(tmp_path: Path) -> None:
    static = _static(tmp_path, "bert")
    chance = random.Random(7)
    by_tokens = {bucket.tokens: bucket for bucket in static.buckets}

    assert list(by_tokens) == [64, 96, 128, 192, 256, 384, _BUDGET]
    assert static.bucket_of(_batch(chance, *[4] * 16)) is by_tokens[64]
    assert static.bucket_of(_batch(chance, *[4] * 15, 5)) is by_tokens[96]
    assert static.bucket_of(_batch(chance, *[1] * 17)) is by_tokens[96]  # more texts than it has
    assert static.bucket_of(_batch(chance, *[40] * 10)) is by_tokens[_BUDGET]
    assert static.bucket_of(_batch(chance, *[40] * 10, 1)) is None
    assert static.bucket_of(_batch(chance, POSITIONS + 1)) is None


@pytest.mark.parametrize("budget", [1, 5, 63, 64, 65, 1000, 1024, 16384, 1 << 20])
def test_buckets_go_up_to_the_budget(budget: int) -> None:
    buckets = buckets_up_to(budget, 512)
    sizes = [bucket.tokens for bucket in buckets]

    assert sizes == sorted(set(sizes))
    assert sizes[-1] == min(budget, 16384)
    assert all(low < high <= 1.5 * low for low, high in pairwise(sizes))
    assert len(sizes) <= 17
    assert all(0 < one.texts <= 256 and one.longest == min(512, one.tokens) for one in buckets)


def test_the_row_is_covered_by_segments_no_longer_than_a_text(tmp_path: Path) -> None:
    """Red with one slot less for the padding."""
    static = _static(tmp_path, "bert")
    chance = random.Random(8)
    for bucket in static.buckets:
        some = _cut(chance, chance.randint(1, bucket.tokens), bucket.texts)
        full = _cut(chance, bucket.tokens, bucket.texts)
        for lengths in ([1], some, full, [1] * bucket.texts):
            batch = _batch(chance, *lengths)
            static.fill(bucket, batch)
            bounds = static.inputs(bucket).bounds
            found = bounds.diff()
            assert bounds[0] == 0
            assert bounds[-1] == bucket.tokens
            assert found[: len(batch)].tolist() == list(map(len, batch))
            assert 0 <= found.min() <= found.max() <= bucket.longest


def _without_numbers(module: torch.nn.Module) -> None:
    """Replaces every tensor of a module by one that has a shape and 16 bits, but no numbers."""
    for part in module.modules():
        places: list[dict[str, Any]] = [part._buffers, vars(part)]
        places.append(part._parameters)
        for kept in places:
            for name, value in kept.items():
                if isinstance(value, torch.Tensor):
                    dtype = torch.float16 if value.is_floating_point() else value.dtype
                    kept[name] = torch.empty(value.shape, dtype=dtype, device="meta")


@pytest.mark.parametrize(("kind", "extra"), _KINDS)
def test_a_forward_by_the_gpus_kernel_asks_for_no_value(
    tmp_path: Path, kind: str, extra: dict[str, Any]
) -> None:
    """Red with an `.item()`, a mask that selects, or lengths read from the bounds.

    A capture would refuse these, and so do tensors without numbers.
    """
    encoder = _static(tmp_path, kind, attend_varlen, **extra).encoder
    _without_numbers(encoder)
    static = StaticEncoder(encoder, [Bucket(96, 24, POSITIONS)])

    with torch.inference_mode():
        static.run(static.buckets[0])

    assert static.rows(24).device.type == "meta"
    assert static.rows(24).shape == (24, encoder.dimensions)
