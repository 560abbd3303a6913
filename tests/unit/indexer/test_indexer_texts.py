"""The ranges of a text that match a question, and the lines of a file."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.indexer.lines import MOST_BYTES, MOST_LINES, cut_lines
from services.indexer.search.highlight import MOST_RANGES, matched_ranges
from services.indexer.search.terms import query_terms


@pytest.mark.parametrize(
    ("query", "text", "marked"),
    [
        ("parse body", "def parse_body(raw):", ["parse", "body"]),
        ("parse_body", "def parse_body(raw):", ["parse_body"]),
        ("http response", "x = getHTTPResponse(http2)", ["HTTP", "Response"]),
        ("get", "target.get(targetGet)", ["get", "Get"]),
        ("how is it done", "is it done", ["done"]),
        ("is it", "is it done", ["is", "it"]),
        ("naïve", "é naïve", ["naïve"]),
        ("用户", "# 加载用户配置, 用户", ["用户", "用户"]),
        ("nothing", "else here", []),
        (
            "handling errors",
            "def handle_error(error_handler):",
            ["handle", "error", "error", "handler"],
        ),
    ],
)
def test_terms_are_found_where_they_stand(query: str, text: str, marked: list[str]) -> None:
    data = text.encode()

    assert [data[start:end].decode() for start, end in matched_ranges(query, text)] == marked


@given(query=st.text(max_size=40), text=st.text(max_size=200))
def test_ranges_are_in_order_and_cut_no_character(query: str, text: str) -> None:
    data = text.encode("utf-8", "surrogatepass")
    if data.decode("utf-8", "replace") != text:
        return
    position = 0
    terms = set(query_terms(query))
    for start, end in matched_ranges(query, text):
        assert position <= start < end <= len(data)
        assert data[start:end].decode()
        assert terms
        position = end


def test_a_text_of_one_word_has_a_bounded_number_of_ranges() -> None:
    assert len(matched_ranges("word", "word " * 1000)) == MOST_RANGES


@pytest.mark.parametrize(
    ("text", "start", "end", "expected"),
    [
        ("a\nb\nc\n", 0, 0, ("a\nb\nc\n", 1, 3, 3)),
        ("a\nb\nc", 2, 9, ("b\nc", 2, 3, 3)),
        ("a\nb\nc", 2, 2, ("b\n", 2, 2, 3)),
        ("a\n", 5, 9, ("", 5, 4, 1)),
        ("", 0, 0, ("", 1, 0, 0)),
        ("a\r\nb\r\n", 1, 1, ("a\r\n", 1, 1, 2)),
    ],
)
def test_lines_are_counted_from_one(
    text: str, start: int, end: int, expected: tuple[str, int, int, int]
) -> None:
    lines = cut_lines(text, start, end)

    assert (lines.text, lines.start, lines.end, lines.line_count) == expected


def test_an_answer_has_a_bounded_number_of_lines_and_bytes() -> None:
    assert cut_lines("x\n" * 10_000, 11, 0).end == 10 + MOST_LINES
    wide = cut_lines(f"{'x' * 1000}\n" * 1000, 1, 0)
    assert len(wide.text) <= MOST_BYTES < len(wide.text) + 1001
    assert cut_lines("x" * (MOST_BYTES + 1), 1, 1).text == ""
