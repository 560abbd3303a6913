"""The normal form of a text."""

from __future__ import annotations

import time
from itertools import takewhile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.io.content import content_hash, normal_form

LINES = st.lists(st.text(st.characters(exclude_characters="\r\n\t", codec="utf-8")), max_size=8)


def whole(text: str) -> str:
    data = text.encode()
    return normal_form(data, [(0, len(data))])


@given(LINES)
def test_a_normal_form_is_its_own(lines: list[str]) -> None:
    once = whole("\n".join(lines))
    assert whole(once) == once


@given(LINES, st.sampled_from(["    ", "\t", " "]))
def test_indentation_of_all_lines_does_not_matter(lines: list[str], indentation: str) -> None:
    text = "\n".join(lines)
    indented = "\n".join(indentation + line for line in lines)
    assert whole(indented) == whole(text)


@given(st.lists(st.text(" \tab\f\N{NO-BREAK SPACE}", max_size=6), max_size=8))
def test_lines_lose_the_blanks_that_all_of_them_begin_with(lines: list[str]) -> None:
    ended = [line.rstrip() for line in lines]
    leads = [line[: len(line) - len(line.lstrip(" \t"))] for line in ended if line]
    columns = map(set, zip(*leads, strict=False))
    margin = sum(1 for _ in takewhile(lambda column: len(column) == 1, columns))
    assert whole("\n".join(lines)) == "\n".join(line[margin:] for line in ended).strip("\n")


@given(LINES)
def test_trailing_space_and_line_ends_do_not_matter(lines: list[str]) -> None:
    assert whole("  \r\n".join(lines)) == whole("\n".join(lines))


def test_a_segment_that_begins_in_mid_line_has_the_indentation_of_its_line() -> None:
    data = b"class A:\n    def m(self):\n        return 1\n"
    assert normal_form(data, [(data.index(b"def"), len(data))]) == "def m(self):\n    return 1"


@pytest.mark.parametrize("line", ["", " ", "\x0b"])
def test_blank_lines_at_both_ends_do_not_matter_however_many(line: str) -> None:
    """Red when they are taken away one by one from the start: that of two MiB took minutes."""
    assert whole(f"{line}\n" * (1 << 20)) == ""
    assert whole(f"{line}\n" * (1 << 20) + "a\n\nb" + f"\n{line}" * 2) == "a\n\nb"


def test_tabs_within_lines_and_inner_indentation_are_kept() -> None:
    assert whole("\tif a:\n\t\tb\tc\n") == "if a:\n\tb\tc"


def test_segments_are_dedented_each_and_joined_by_newlines() -> None:
    data = b"a:\n        b\n    c\n"
    assert normal_form(data, [(0, 2), (11, 12), (17, 18)]) == "a:\nb\nc"


def test_a_segment_that_cuts_a_character_is_an_error() -> None:
    with pytest.raises(UnicodeDecodeError):
        normal_form("é".encode(), [(0, 1)])


def test_the_hash_is_of_the_text_and_the_recipe_alone() -> None:
    assert content_hash("a") == content_hash("a")
    assert content_hash("a") != content_hash("b")
    assert len(content_hash("a")) == 32


def test_many_segments_of_one_line_cost_no_more_each_than_few() -> None:
    """Red (64 times, not 8) when each segment is given the indentation of its line."""

    def seconds(count: int) -> float:
        data = b" " * 6 * count + b"x = 1;" * count
        segments = [(start, start + 5) for start in range(6 * count, len(data), 6)]
        times = []
        for _ in range(5):
            started = time.thread_time()
            normal_form(data, segments)
            times.append(time.thread_time() - started)
        return min(times)

    assert seconds(80_000) < 25 * seconds(10_000)
