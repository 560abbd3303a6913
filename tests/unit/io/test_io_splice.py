"""Edits of one file become its new content, or nothing does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.io.changes import FileEdits, Splice
from services.io.content import file_digest
from services.io.errors import (
    ContentChangedError,
    FileTooLargeError,
    InvalidUtf8Error,
    RangeOutsideFileError,
)
from services.io.splice import check_overlap, spliced
from services.runtime.errors import InvalidRequestError
from tests.unit.io.writing import edit

TEXT = st.text(alphabet="ab\né€😀", max_size=40)


@st.composite
def edits_of_text(draw: st.DrawFn) -> tuple[str, list[tuple[int, int, str]]]:
    """Draws a text and edits by character that do not overlap, in any order."""
    text = draw(TEXT)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pairs = list(zip(cuts[::2], cuts[1::2], strict=False))
    edits = [(start, end, draw(st.text(alphabet="xyü", max_size=5))) for start, end in pairs]
    # Two ranges that begin at one place and are not empty do overlap.
    kept: list[tuple[int, int, str]] = []
    for item in edits:
        if not kept or item[0] >= kept[-1][1]:
            kept.append(item)
    return text, draw(st.permutations(kept))


def naive(text: str, edits: list[tuple[int, int, str]]) -> str:
    """Applies edits one by one from the end; of those at one place the last asked comes first."""
    order = sorted(range(len(edits)), key=lambda i: (edits[i][0], edits[i][1], i))
    for position in reversed(order):
        start, end, replacement = edits[position]
        text = text[:start] + replacement + text[end:]
    return text


def at_byte(text: str, character: int) -> int:
    return len(text[:character].encode())


@given(edits_of_text())
def test_edits_give_what_a_naive_model_gives(drawn: tuple[str, list[tuple[int, int, str]]]) -> None:
    """Red when splices are sorted by start alone, or joined in the order of the request."""
    text, edits = drawn
    data = text.encode()
    asked = edit(
        "f", data, *[(at_byte(text, s), at_byte(text, e), r.encode()) for s, e, r in edits]
    )
    if edits:
        assert spliced(data, file_digest(data), asked, 1000).decode() == naive(text, edits)


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 5)), min_size=1, max_size=6))
def test_ranges_overlap_when_they_share_a_byte_or_one_lies_inside(
    ranges: list[tuple[int, int]],
) -> None:
    """Red when touching ranges count as overlapping, or an insertion inside a range does not."""
    splices = [Splice(s, s + n, b"", b"", i) for i, (s, n) in enumerate(ranges)]
    overlap = any(
        a.start < b.end and b.start < a.end for i, a in enumerate(splices) for b in splices[i + 1 :]
    )
    asked = FileEdits("f", tuple(splices))
    if overlap:
        with pytest.raises(InvalidRequestError) as raised:
            check_overlap(asked)
        [(field, text)] = raised.value.metadata.items()
        assert field.startswith("edits[")
        assert "overlaps with edits[" in text
    else:
        check_overlap(asked)


@pytest.mark.parametrize(
    ("splices", "expected"),
    [
        ([(1, 1, b"X"), (1, 1, b"Y")], b"aXYbc"),  # the order of the request
        ([(1, 2, b"B"), (1, 1, b"X")], b"aXBc"),  # before the range that begins there
        ([(2, 2, b"X"), (1, 2, b"B")], b"aBXc"),  # after the range that ends there
        ([(0, 1, b""), (1, 2, b""), (2, 3, b"")], b""),
        ([(3, 3, b"d")], b"abcd"),
        ([(0, 0, b"")], b"abc"),
    ],
)
def test_what_touches_stands_in_a_fixed_order(
    splices: list[tuple[int, int, bytes]], expected: bytes
) -> None:
    assert spliced(b"abc", file_digest(b"abc"), edit("f", b"abc", *splices), 100) == expected


@pytest.mark.parametrize(
    ("data", "splice", "error"),
    [
        (b"abc", (2, 4, b""), RangeOutsideFileError),
        (b"abc", (3, 2, b""), RangeOutsideFileError),
        ("é".encode(), (1, 2, b""), InvalidUtf8Error),
        ("é".encode(), (0, 1, b""), InvalidUtf8Error),
        (b"abc", (0, 1, b"\xff"), InvalidUtf8Error),
        (b"abc", (0, 0, b"x" * 98), FileTooLargeError),
    ],
)
def test_an_edit_that_does_not_fit_is_refused(
    data: bytes, splice: tuple[int, int, bytes], error: type[Exception]
) -> None:
    with pytest.raises(error):
        spliced(data, file_digest(data), edit("f", data, splice), 100)


def test_a_file_that_is_no_utf8_may_stay_so() -> None:
    data = b"\xffabc"
    assert spliced(data, file_digest(data), edit("f", data, (1, 2, b"\xfe")), 9) == b"\xff\xfebc"


def test_one_edit_for_other_content_refuses_all_of_the_file() -> None:
    good, bad = Splice(0, 1, b"", file_digest(b"abc"), 0), Splice(1, 2, b"", bytes(32), 1)
    with pytest.raises(ContentChangedError):
        spliced(b"abc", file_digest(b"abc"), FileEdits("f", (good, bad)), 100)
