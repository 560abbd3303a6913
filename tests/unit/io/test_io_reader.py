"""Reads are verified, item by item."""

from __future__ import annotations

import asyncio
import os
import resource
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.io import metrics, reading
from services.io.beneath import WouldWaitError
from services.io.content import content_hash, file_digest
from services.io.errors import FileTooLargeError, InvalidUtf8Error, RangeOutsideFileError
from services.io.loader import FileLoader
from services.io.model import ContentRef, NodeContent, SnippetRef, Span
from services.io.reader import MAX_CALLS, Reader
from services.io.settings import IoSettings, read_permits
from services.io.slicing import snippet_of, take_snippets
from services.runtime.errors import LodestoneError
from tests.unit.io.harness import MakeFiles, open_tree

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from services.io.cache import FileBytes
    from services.io.paths import Tree


@pytest.fixture
async def reader() -> AsyncIterator[Reader]:
    with ThreadPoolExecutor(2) as threads:
        yield Reader(threads, FileLoader(100), permits=1, max_answer_bytes=200)


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


@pytest.mark.parametrize("permits", [1, 2])
async def test_few_permits_serve_many_calls_and_many_files_at_once(
    make_files: MakeFiles, permits: int
) -> None:
    """Red when a call keeps its permit while it waits for another."""
    top = make_files({f"f{i}": f"text {i}" for i in range(20)})
    refs = [ref(f"f{i}", 0, 6, f"text {i}") for i in range(20)]
    with ThreadPoolExecutor(8) as threads:
        reader = Reader(threads, FileLoader(100), permits=permits, max_answer_bytes=200)
        answers = await asyncio.gather(
            *(reader.read_snippets(partial(open_tree, top), refs) for _ in range(3 * MAX_CALLS))
        )
    assert all(reasons(results) == [""] * 20 for results in answers)


async def test_a_file_is_opened_once_in_a_batch_and_every_item_of_it_is_checked(
    reader: Reader, make_files: MakeFiles
) -> None:
    """Red when the first item of a file vouches for the others (I2), or each item opens it."""
    top = make_files({"a": "text", "b": "more"})
    refs = [ref(path, 0, n, text) for n in range(4) for path, text in (("a", "text"), ("b", "old"))]
    before = metrics.READ_FILES.labels("read")._value.get()
    results = await reader.read_snippets(partial(open_tree, top), refs)
    assert metrics.READ_FILES.labels("read")._value.get() == before + 2
    assert reasons(results) == ["", "CONTENT_CHANGED"] * 4


async def test_no_more_calls_read_at_once_than_may_hold_texts(make_files: MakeFiles) -> None:
    """Red when a call that has to wait begins: each may hold as much as an answer takes."""
    top = make_files({"a": "text"})
    begun, go_on = 0, threading.Event()

    def open_slowly(*, waits: bool) -> Tree:
        nonlocal begun
        if not waits:
            begun += 1
            raise WouldWaitError
        assert go_on.wait(10)
        return open_tree(top)

    with ThreadPoolExecutor(1) as threads:
        reader = Reader(threads, FileLoader(100), permits=1, max_answer_bytes=200)
        refs = [ref("a", 0, 4, "text")]
        calls = [
            asyncio.create_task(reader.read_snippets(open_slowly, refs))
            for _ in range(MAX_CALLS + 4)
        ]
        for _ in range(10 * len(calls)):  # each call has a turn of the loop by then
            await asyncio.sleep(0)
        assert begun == MAX_CALLS
        go_on.set()
        assert await asyncio.gather(*calls) == [[b"text"]] * len(calls)


class CountingLoader(FileLoader):
    """Counts how many files are held at once."""

    def __init__(self) -> None:
        super().__init__(1 << 20)
        self._lock = threading.Lock()
        self._held = 0
        self.most = 0

    def load(self, tree: Tree, path: str, *, at_once_bytes: int = 0) -> FileBytes:
        if not tree.waits:
            raise WouldWaitError
        with self._lock:
            self._held += 1
            self.most = max(self.most, self._held)
        try:
            return super().load(tree, path, at_once_bytes=at_once_bytes)
        finally:
            with self._lock:
                self._held -= 1


async def test_never_more_files_are_open_than_there_are_permits(make_files: MakeFiles) -> None:
    """Memory is bounded over all calls: red when each call takes threads without a permit."""
    top = make_files({})
    for number in range(60):
        with (top / f"f{number}").open("wb") as file:
            file.truncate(1 << 20)
    refs = [SnippetRef(f"f{number}", 0, 1, b"") for number in range(60)]
    loader = CountingLoader()
    with ThreadPoolExecutor(8) as threads:
        reader = Reader(threads, loader, permits=2, max_answer_bytes=200)
        await asyncio.gather(
            *(reader.read_snippets(partial(open_tree, top), refs) for _ in range(6))
        )
    assert loader.most == 2


async def test_a_cancelled_call_gives_its_permit_back_when_its_thread_is_done(
    make_files: MakeFiles,
) -> None:
    """Red when the permit comes back at once: a stuck disk would hold any number of threads."""
    top = make_files({"a": "text"})
    entered, go_on = threading.Event(), threading.Event()

    def open_slowly(*, waits: bool) -> Tree:
        if not waits:
            raise WouldWaitError
        entered.set()
        assert go_on.wait(10)
        return open_tree(top)

    with ThreadPoolExecutor(2) as threads:
        reader = Reader(threads, FileLoader(100), permits=1, max_answer_bytes=200)
        refs = [ref("a", 0, 4, "text")]
        call = asyncio.create_task(reader.read_snippets(open_slowly, refs))
        await asyncio.to_thread(entered.wait, 10)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert reader._permits.locked()
        go_on.set()
        assert await reader.read_snippets(partial(open_tree, top), refs) == [b"text"]


async def test_a_cancelled_call_leaves_a_file_of_which_it_wants_very_much(
    make_files: MakeFiles,
) -> None:
    """Red when whoever is gone is looked for between files alone: all texts took a minute."""
    data = b"    x = 1\n" * ((2 << 20) // 10)
    top, digest = make_files({"a": data}), file_digest(data)
    wanted = ContentRef("a", (Span(0, len(data)),), digest, bytes(32))
    entered = threading.Event()

    def open_in_thread(*, waits: bool) -> Tree:
        if waits:
            entered.set()
        return open_tree(top, waits=waits)

    with ThreadPoolExecutor(2) as threads:
        reader = Reader(threads, FileLoader(len(data)), permits=1, max_answer_bytes=200)
        call = asyncio.create_task(reader.read_contents(open_in_thread, [wanted] * 1000))
        await asyncio.to_thread(entered.wait, 10)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        async with asyncio.timeout(10):
            await reader._permits.acquire()


async def test_a_sparse_terabyte_is_refused_and_not_read(
    reader: Reader, make_files: MakeFiles
) -> None:
    """Red when the limit is found out by reading: that many bytes would pass for each item."""
    top = make_files({"a": ""})
    with (top / "a").open("wb") as file:
        file.truncate(1 << 40)
    [result] = await reader.read_snippets(partial(open_tree, top), [ref("a", 0, 1, "")])
    assert isinstance(result, FileTooLargeError)
    assert result.metadata == {"path": "a", "size": str(1 << 40), "limit": "100"}


async def test_a_file_that_grows_while_it_is_read_is_cut_off(
    reader: Reader, make_files: MakeFiles
) -> None:
    """No read follows a writer for ever, and none returns what was not named."""
    top = make_files({"a": "x"})
    stop = threading.Event()

    def grow() -> None:
        with (top / "a").open("ab", buffering=0) as file:
            while not stop.is_set():
                file.write(b"x" * 10)
                if file.tell() > 200:
                    file.truncate(1)

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        for _ in range(200):
            results = await reader.read_snippets(
                partial(open_tree, top), [ref("a", 0, 1, "x"), ref("a", 0, 1, "y")]
            )
            assert set(reasons(results)[1:]) <= {"CONTENT_CHANGED", "FILE_TOO_LARGE"}
            assert set(reasons(results)[:1]) <= {"", "CONTENT_CHANGED", "FILE_TOO_LARGE"}
    finally:
        stop.set()
        writer.join()


def test_a_file_that_tells_no_size_is_cut_off_at_the_limit() -> None:
    """Red when its size alone is compared: `/proc` tells none of what it makes up."""
    with open_tree(Path("/proc"), directory=str(os.getpid())) as tree:
        for name in ("status", "maps"):
            with pytest.raises(FileTooLargeError) as raised:
                FileLoader(100).load(tree, name)
            assert raised.value.metadata["size"] == "101"


async def test_a_missing_tree_fails_the_call(reader: Reader, tmp_path: Path) -> None:
    with pytest.raises(LodestoneError):
        await reader.read_snippets(partial(open_tree, tmp_path / "no"), [ref("a", 0, 1, "")])


@given(st.text(max_size=20), st.integers(0, 90), st.integers(0, 90))
def test_a_slice_is_valid_text_or_an_error_that_says_why(text: str, start: int, end: int) -> None:
    """Red when the short way for plain ASCII does not look at what follows the range."""
    data = text.encode()
    item = SnippetRef("a", min(start, end), max(start, end), b"")
    (([(position, result)], size),) = take_snippets(data, b"", [(7, item)])
    assert position == 7
    if isinstance(result, RangeOutsideFileError):
        assert item.end > len(data)
    elif isinstance(result, InvalidUtf8Error):
        with pytest.raises(UnicodeDecodeError):
            (data[: item.start].decode(), data[: item.end].decode())
    else:
        assert not isinstance(result, LodestoneError)
        assert result == data[item.start : item.end]
        assert result.decode() in text
    assert size == (0 if isinstance(result, LodestoneError) else len(result))


@given(
    st.one_of(st.binary(max_size=12), st.text("ab\u00e9", max_size=8).map(str.encode)),
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=6),
)
def test_slices_of_any_bytes_are_what_the_long_way_says(
    data: bytes, ranges: list[tuple[int, int]]
) -> None:
    """The short ways and the long one agree on every file, valid or not, for few items and many."""
    items = [SnippetRef("a", start, end, b"") for start, end in ranges]
    [(taken, _)] = take_snippets(data, b"", list(enumerate(items)))
    for (position, result), item in zip(taken, items, strict=True):
        try:
            expected: object = snippet_of(data, b"", item)
        except LodestoneError as error:
            expected = error.reason
        assert items[position] is item
        assert (result.reason if isinstance(result, LodestoneError) else result) == expected


Limit = tuple[int, int]
INFINITY = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("options", "limit", "expected"),
    [
        ({"max_open_files": 1, "fd_limit": 30}, (900, 900), 1),
        ({"max_open_files": 1024, "fd_limit": 30}, (90, 900), 1024),
        ({"fd_limit": 30}, (900, 900), 30),
        ({"fd_limit": 1}, (900, 900), 4),
        ({"fd_limit": 5000}, (900, 900), 1024),
        ({}, (90, 900), 30),
        ({}, (9000, 9000), 100),
        ({}, (2, 900), 1),
        ({}, (INFINITY, INFINITY), 50),
    ],
)
def test_permits_come_from_the_first_that_is_set(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, int], limit: Limit, expected: int
) -> None:
    """In order: `max_open_files`, `fd_limit` (4 to 1024), the system's limit (a third), 50."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: limit)
    assert read_permits(IoSettings(**options)) == expected  # type: ignore[arg-type]


def test_the_systems_limit_is_the_one_of_this_process() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (240, hard))
    try:
        assert read_permits(IoSettings()) == 80
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@given(
    st.binary(max_size=40), st.integers(0, 60), st.integers(0, 60), st.sampled_from([1, 3, 1 << 20])
)
def test_a_file_is_read_to_its_end_or_to_one_byte_over_the_limit(
    content: bytes, expected_bytes: int, max_bytes: int, chunk_bytes: int
) -> None:
    """Whatever size was told before: it may have grown, shrunk, or be of a kind that tells none."""
    with TemporaryFile() as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "_CHUNK_BYTES", chunk_bytes)
        file.write(content)
        file.flush()
        data = reading.read_to_end(file.fileno(), expected_bytes, max_bytes)
    assert data == content[: max_bytes + 1]


def test_a_file_that_tells_no_size_is_read_in_large_pieces() -> None:
    """Files of the kernel say 0, and answer in pieces: a short one is not the end."""
    fd = os.open("/proc/self/smaps", os.O_RDONLY)
    try:
        data = reading.read_to_end(fd, os.fstat(fd).st_size, 1 << 24)
    finally:
        os.close(fd)
    assert len(data) > 20_000
    assert data.endswith(b"\n")
