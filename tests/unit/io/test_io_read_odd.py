"""Reads of poison input (F9): each item has its documented outcome, and its neighbours are fine.

Red when `take_snippets` takes a range as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from lodestone.io.v1 import (
    parse_service_pb2,
    snippet_service_pb2,
    snippet_service_pb2_grpc,
    tree_pb2,
)
from services.io.content import content_hash, file_digest, normal_form
from services.runtime.status import read_status
from tests.unit.io.attacks import BYTES
from tests.unit.io.harness import serve

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.io.harness import MakeFiles

LINE_BYTES = 50_000_000
LINE = b"x = '" + b"a" * (LINE_BYTES - 6) + b"'"
FINE = "def fine():\n    return '\u00e9'\n".encode()
TREE = tree_pb2.Tree(root="roots/test")
WHOLE = -1


class Read(NamedTuple):
    """A range of a file, and why it is not read, if it is not."""

    name: str
    start: int = 0
    end: int = WHOLE
    reason: str = ""


UTF8 = "INVALID_UTF8"
OUTSIDE = "RANGE_OUTSIDE_FILE"
READS = [
    Read("nul.py"), Read("nul.py", 5, 6), Read("late_nul.py", 29_999, 30_001),
    Read("surrogate.py", reason=UTF8), Read("surrogate.py", 5, 8, UTF8),
    Read("surrogate.py", 6, 8, UTF8), Read("surrogate.py", 0, 5), Read("surrogate.py", 8, 10),
    Read("invalid.py", reason=UTF8), Read("invalid.py", 0, 30_000),
    Read("cut.py", reason=UTF8), Read("cut.py", 0, 5), Read("overlong.py", reason=UTF8),
    Read("bom.py"), Read("bom.py", 3), Read("bom.py", 1, WHOLE, UTF8), Read("bom_alone.py"),
    Read("utf16.py", reason=UTF8), Read("utf16.py", 2), Read("utf16_be.py"),
    Read("utf32.py", reason=UTF8),
    Read("empty.py"), Read("empty.py", 0, 1, OUTSIDE), Read("empty.py", 1, 1, OUTSIDE),
    Read("blank.py"), Read("tokens.py"), Read("tokens.py", 5, 18), Read("bidi.py"),
    Read("plane.py"), Read("plane.py", 5, 7, UTF8),
]  # fmt: skip


def end_of(read: Read, files: dict[str, bytes]) -> int:
    return len(files[read.name]) if read.end == WHOLE else read.end


def between(refs: list[Any], fine: Any) -> list[Any]:
    """Returns items, each between two of a good file."""
    return [fine, *(ref for bad in refs for ref in (bad, fine))]


def told(result: Any) -> str:
    if not result.HasField("error"):
        return ""
    return read_status(result.error).reason.removeprefix("ERROR_REASON_")


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
async def test_ranges_of_odd_bytes_are_what_the_file_holds_or_an_error(
    make_files: MakeFiles, tmp_path: Path, cache_bytes: int
) -> None:
    files = {name: data for name, (data, _) in BYTES.items()}
    top = make_files({**files, "fine.py": FINE})

    def ref(name: str, start: int, end: int, data: bytes) -> snippet_service_pb2.SnippetRef:
        return snippet_service_pb2.SnippetRef(
            path=name, start_byte=start, end_byte=end, file_digest=file_digest(data)
        )

    refs = [ref(r.name, r.start, end_of(r, files), files[r.name]) for r in READS]
    fine = ref("fine.py", 0, len(FINE), FINE)
    request = snippet_service_pb2.ReadSnippetsRequest(tree=TREE, refs=between(refs, fine))
    async with serve(top, tmp_path / "s", cache_bytes=cache_bytes) as channel:
        stub: Any = snippet_service_pb2_grpc.SnippetServiceStub(channel)
        results = list((await stub.ReadSnippets(request)).results)
    assert [r.content for r in results[::2]] == [FINE] * (len(READS) + 1)
    odd = results[1::2]
    assert dict(zip(READS, map(told, odd), strict=True)) == {r: r.reason for r in READS}
    assert [r.content for r in odd] == [
        b"" if r.reason else files[r.name][r.start : end_of(r, files)] for r in READS
    ]


async def test_texts_of_odd_bytes_are_read_or_an_error(
    make_files: MakeFiles, tmp_path: Path
) -> None:
    """What is no UTF-8 has no text, so no hash that anybody could name; the rest comes back."""
    files = {name: data for name, (data, _) in BYTES.items()}
    top = make_files({**files, "fine.py": FINE})
    texts: dict[str, str | None] = {}
    for name, data in files.items():
        try:
            texts[name] = normal_form(data, [(0, len(data))])
        except UnicodeDecodeError:
            texts[name] = None

    def ref(name: str, data: bytes, text: str | None) -> snippet_service_pb2.ContentRef:
        return snippet_service_pb2.ContentRef(
            path=name,
            segments=[parse_service_pb2.ByteRange(start_byte=0, end_byte=len(data))],
            file_digest=file_digest(data),
            content_hash=content_hash(text or ""),
        )

    fine_text = normal_form(FINE, [(0, len(FINE))])
    refs = [ref(name, data, texts[name]) for name, data in files.items()]
    request = snippet_service_pb2.ReadContentsRequest(
        tree=TREE, refs=between(refs, ref("fine.py", FINE, fine_text))
    )
    async with serve(top, tmp_path / "s") as channel:
        stub: Any = snippet_service_pb2_grpc.SnippetServiceStub(channel)
        results = list((await stub.ReadContents(request)).results)
    assert {r.content.text for r in results[::2]} == {fine_text}
    for (name, text), result in zip(texts.items(), results[1::2], strict=True):
        assert (told(result), result.content.text) == (
            (UTF8, "") if text is None else ("", text)
        ), name
    assert {name for name, text in texts.items() if text is None} == {
        "surrogate.py", "invalid.py", "cut.py", "overlong.py", "utf16.py", "utf32.py",
    }  # fmt: skip


@pytest.mark.parametrize("max_file_bytes", [2 << 20, 64 << 20])
async def test_of_a_line_of_50_mb_a_range_is_read_or_the_file_is_too_large(
    make_files: MakeFiles, tmp_path: Path, max_file_bytes: int
) -> None:
    top = make_files({"line.py": LINE, "fine.py": FINE})
    digest = file_digest(LINE)
    places = [(0, 5), (LINE_BYTES // 2, LINE_BYTES // 2 + 1000), (LINE_BYTES - 2, LINE_BYTES)]
    refs = [
        snippet_service_pb2.SnippetRef(path="line.py", start_byte=s, end_byte=e, file_digest=digest)
        for s, e in places
    ]
    fine = snippet_service_pb2.SnippetRef(
        path="fine.py", end_byte=len(FINE), file_digest=file_digest(FINE)
    )
    request = snippet_service_pb2.ReadSnippetsRequest(tree=TREE, refs=between(refs, fine))
    async with serve(top, tmp_path / "s", max_file_bytes=max_file_bytes) as channel:
        stub: Any = snippet_service_pb2_grpc.SnippetServiceStub(channel)
        results = list((await stub.ReadSnippets(request)).results)
    assert [r.content for r in results[::2]] == [FINE] * (len(refs) + 1)
    if max_file_bytes < LINE_BYTES:
        assert [told(r) for r in results[1::2]] == ["FILE_TOO_LARGE"] * len(refs)
    else:
        assert [r.content for r in results[1::2]] == [LINE[s:e] for s, e in places]
