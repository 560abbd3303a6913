"""Reads are verified, item by item."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.io.content import content_hash, file_digest
from services.io.errors import InvalidUtf8Error, RangeOutsideFileError
from services.io.model import ContentRef, NodeContent, SnippetRef, Span
from services.io.reader import Reader, snippet_of
from services.io.settings import IoSettings, read_permits
from services.runtime.errors import LodestoneError
from tests.unit.io.harness import MakeFiles, open_tree

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def reader() -> AsyncIterator[Reader]:
    with ThreadPoolExecutor(2) as threads:
        yield Reader(threads, permits=1, max_file_bytes=100, max_answer_bytes=200)


def ref(path: str, start: int, end: int, content: str) -> SnippetRef:
    return SnippetRef(path, start, end, file_digest(content.encode()))


def reasons(
    results: list[bytes | LodestoneError] | list[NodeContent | LodestoneError],
) -> list[str]:
    return [
        r.reason.removeprefix("ERROR_REASON_") if isinstance(r, LodestoneError) else ""
        for r in results
    ]


async def test_a_bad_item_fails_alone_and_the_order_is_kept(
    reader: Reader, make_files: MakeFiles
) -> None:
    top = make_files({"a": "héllo", "b": "world", "big": "x" * 101, "bin": b"\xff\xfe"})
    bad = SnippetRef("bin", 0, 2, file_digest(b"\xff\xfe"))
    refs = [
        ref("b", 0, 5, "world"), ref("a", 0, 1, "héllo"), ref("b", 0, 5, "other"),
        ref("a", 0, 2, "héllo"), ref("a", 2, 6, "héllo"), ref("a", 0, 7, "héllo"),
        ref("none", 0, 1, ""), ref("../a", 0, 1, ""), ref("big", 0, 1, "x" * 101), bad,
        ref("a", 3, 6, "héllo"), ref("b", 2, 2, "world"),
    ]  # fmt: skip
    results = await reader.read_snippets(partial(open_tree, top), refs)
    assert reasons(results) == [
        "", "", "CONTENT_CHANGED", "INVALID_UTF8", "INVALID_UTF8", "RANGE_OUTSIDE_FILE",
        "FILE_NOT_FOUND", "PATH_OUTSIDE_TREE", "FILE_TOO_LARGE", "INVALID_UTF8", "", "",
    ]  # fmt: skip
    assert [r for r in results if isinstance(r, bytes)] == [b"world", b"h", b"llo", b""]


async def test_a_content_is_read_in_its_normal_form_and_its_hash_is_checked(
    reader: Reader, make_files: MakeFiles
) -> None:
    source = "class A:\n    def m(self):\n        return 1\n"
    top = make_files({"a.py": source})
    digest = file_digest(source.encode())
    text = "class A:\ndef m(self):\n    return 1"
    spans = (Span(0, 8), Span(13, len(source)))
    good = ContentRef("a.py", spans, digest, content_hash(text))
    wrong = ContentRef("a.py", spans, digest, content_hash("other"))
    results = await reader.read_contents(partial(open_tree, top), [wrong, good])
    assert reasons(results) == ["CONTENT_CHANGED", ""]
    assert results[1] == NodeContent(text, content_hash(text))


async def test_an_answer_too_large_for_a_message_is_refused_item_by_item(
    reader: Reader, make_files: MakeFiles
) -> None:
    top = make_files({"a": "x" * 90})
    refs = [ref("a", 0, 90, "x" * 90)] * 3
    results = await reader.read_snippets(partial(open_tree, top), refs)
    assert reasons(results) == ["", "", "OVERLOADED"]


async def test_one_permit_serves_many_calls_at_once(reader: Reader, make_files: MakeFiles) -> None:
    top = make_files({f"f{i}": f"text {i}" for i in range(20)})
    refs = [ref(f"f{i}", 0, 6, f"text {i}") for i in range(20)]
    answers = await asyncio.gather(
        *(reader.read_snippets(partial(open_tree, top), refs) for _ in range(10))
    )
    assert all(reasons(results) == [""] * 20 for results in answers)


async def test_a_missing_tree_fails_the_call(reader: Reader, tmp_path: Path) -> None:
    with pytest.raises(LodestoneError):
        await reader.read_snippets(partial(open_tree, tmp_path / "no"), [ref("a", 0, 1, "")])


@given(st.text(max_size=20), st.integers(0, 90), st.integers(0, 90))
def test_a_slice_is_valid_text_or_an_error_that_says_why(text: str, start: int, end: int) -> None:
    data = text.encode()
    item = SnippetRef("a", min(start, end), max(start, end), b"")
    try:
        content = snippet_of(data, item)
    except RangeOutsideFileError:
        assert item.end > len(data)
    except InvalidUtf8Error:
        with pytest.raises(UnicodeDecodeError):
            (data[: item.start].decode(), data[: item.end].decode())
    else:
        assert content == data[item.start : item.end]
        assert content.decode() in text


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"max_open_files": 7, "fd_limit": 3}, 7), ({"fd_limit": 1}, 4), ({"fd_limit": 5000}, 1024)],
)
def test_permits_have_their_precedence(options: dict[str, int], expected: int) -> None:
    assert read_permits(IoSettings(**options)) == expected  # type: ignore[arg-type]


def test_permits_are_at_most_a_hundred_without_a_setting() -> None:
    assert 1 <= read_permits(IoSettings()) <= 100
