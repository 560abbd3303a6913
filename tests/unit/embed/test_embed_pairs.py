"""Pairs are the ids, types and lengths that the tokenizer's own library gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from services.embed.backends.padding import pad
from services.embed.model import TYPE_SHIFT, EncodedText
from services.embed.pair_tokenizer import PairTokenizer, longest_first
from services.runtime.errors import InvalidRequestError
from tests.unit.embed.harness import bundled_folder

_TOKENS = 24
_TEXTS = st.text("ab (.é日\n", max_size=60)


def _tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(bundled_folder() / "tokenizer.json"))


@pytest.fixture(scope="module")
def pairs() -> PairTokenizer:
    return PairTokenizer(_tokenizer(), max_tokens=_TOKENS, max_text_chars=1 << 20)


@pytest.fixture(scope="module")
def reference() -> Tokenizer:
    tokenizer = _tokenizer()
    tokenizer.no_padding()
    tokenizer.enable_truncation(_TOKENS, strategy="longest_first")
    return tokenizer


@given(query=_TEXTS, text=_TEXTS)
def test_a_pair_is_what_the_library_makes_of_it(
    pairs: PairTokenizer, reference: Tokenizer, query: str, text: str
) -> None:
    """Red when types are left out, when the wrong text is cut, or a special token is missing."""
    (encoded,) = pairs.encode_pairs(query, [text])
    expected = reference.encode(query, text)

    assert isinstance(encoded, EncodedText)
    ids, mask, types = pad([encoded.ids], token_types=True)
    assert ids[0].tolist() == expected.ids
    assert types[0].tolist() == expected.type_ids
    assert mask[0].tolist() == expected.attention_mask
    whole = len(_tokenizer_of(reference, query)) + len(_tokenizer_of(reference, text)) + 3
    assert encoded.shortened == (whole > _TOKENS)


def _tokenizer_of(reference: Tokenizer, text: str) -> list[int]:
    """Returns all ids of a text, which 60 characters keep below any cut of a single one."""
    encoding = reference.encode(text, add_special_tokens=False)
    return [*encoding.ids, *(number for more in encoding.overflowing for number in more.ids)]


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 40))
def test_the_longer_text_gives_way(first: int, second: int, room: int) -> None:
    kept = longest_first(first, second, room)

    assert sum(kept) == min(first + second, room)
    assert kept[0] <= first
    assert kept[1] <= second
    assert min(kept) >= min(first, second, room // 2)


def test_a_long_text_costs_what_its_beginning_costs(pairs: PairTokenizer) -> None:
    """Red when the whole text is tokenized before it is cut: 40 MB take tens of seconds."""
    (encoded, bad) = pairs.encode_pairs("query", ["word " * 8_000_000, "\ud800"])

    assert isinstance(encoded, EncodedText)
    assert (len(encoded.ids), encoded.shortened) == (_TOKENS, True)
    assert isinstance(bad, InvalidRequestError)


def test_types_are_told_apart_from_ids_and_padding_has_none() -> None:
    batch = [np.array([5, 7 | 1 << TYPE_SHIFT]), np.array([9])]

    ids, mask, types = pad(batch, token_types=True)

    assert ids.tolist() == [[5, 7], [9, 0]]
    assert types.tolist() == [[0, 1], [0, 0]]
    assert mask.tolist() == [[1, 1], [1, 0]]
    assert len(pad(batch, token_types=False)) == 2
