"""Tokens counted by marks are those that the pattern of pieces finds, in every range of a text."""

from __future__ import annotations

import sys

from hypothesis import given
from hypothesis import strategies as st

from services.io.parser.tokens import PIECE, TOKENS_PER_PIECE, TokenCounter

_WORDS = st.text(st.sampled_from("abAB09_ \n\t\x1c\x85\u2003.(é٣中\u0301🎉"), max_size=60)
_TEXTS = st.lists(_WORDS | st.sampled_from(["a" * 9, "ABCDEFGh", "HTTPServer", "2026"])).map(
    "".join
)


@given(_TEXTS, st.data())
def test_a_range_has_the_tokens_of_its_text_wherever_it_is_cut(
    text: str, data: st.DataObject
) -> None:
    """Red when a range that begins or ends inside a word is counted by marks alone."""
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    low, high = len(text[:start].encode()), len(text[:end].encode())
    found = TokenCounter(text.encode()).of(low, high)
    assert found == len(PIECE.findall(text[start:end])) * TOKENS_PER_PIECE


def test_every_character_counts_as_the_pattern_has_it() -> None:
    """Red when the spaces beyond ASCII are counted as characters that are seen."""
    codes = (code for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000)
    text = "".join(f" {chr(code)} " for code in codes)
    counter = TokenCounter(text.encode())
    assert counter.of(0, len(counter.data)) == len(PIECE.findall(text)) * TOKENS_PER_PIECE
