"""What is in memory is read without the way to a thread; nothing else holds the loop up."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any

import pytest

from lodestone.io.v1 import snippet_service_pb2
from services.io import beneath, convert, paths, reader, reading
from services.io.beneath import WouldWaitError
from services.io.content import content_hash, file_digest
from services.io.loader import FileLoader
from services.io.model import ContentRef, NodeContent, Root, SnippetRef, Span, SymlinkPolicy
from services.io.paths import Tree
from services.io.reader import AT_ONCE_FILE_BYTES, Reader
from services.io.root_file import RootFile
from services.io.roots import REFRESH_SECONDS, Roots
from services.io.servicers.snippets import FEW_PIECES, SnippetServicer
from tests.unit.io.harness import MakeFiles, open_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MIB = 1 << 20


class AskedThreads(Executor):
    """Tells whether work was handed to a thread; on a slow machine one call takes several."""

    def __init__(self) -> None:
        self.were_asked = False
        self._threads = ThreadPoolExecutor(2)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **named: Any) -> Future[Any]:
        self.were_asked = True
        return self._threads.submit(fn, *args, **named)

    def shutdown(self, *args: Any, **named: Any) -> None:
        self._threads.shutdown(*args, **named)


@pytest.fixture
def threads() -> Iterator[AskedThreads]:
    with AskedThreads() as made:
        yield made


def ref(path: str, data: bytes, end: int = 4) -> SnippetRef:
    return SnippetRef(path, 0, end, file_digest(data))


async def read(threads: AskedThreads, top: Path, refs: list[SnippetRef]) -> list[Any]:
    """Reads as one call of a reader of its own."""
    own = Reader(threads, FileLoader(4 * MIB), permits=2, max_answer_bytes=4 * MIB)
    return await own.read_snippets(partial(open_tree, top), refs)


def is_at_once(file: Path) -> bool:
    """Tells whether the file system of a file can answer without waiting."""
    with file.open("rb") as opened:
        try:
            got = os.preadv(opened.fileno(), [bytearray(MIB)], 0, os.RWF_NOWAIT)
        except OSError:
            return False
        return got == file.stat().st_size


@pytest.fixture
def top(make_files: MakeFiles) -> Path:
    made = make_files({"a.py": "text", "folder/b.py": "more text"})
    if not is_at_once(made / "a.py"):
        pytest.skip("the file system cannot tell what is in memory")
    return made


async def test_small_files_in_memory_are_read_in_the_loop(threads: AskedThreads, top: Path) -> None:
    """Red when each call goes to a thread, which takes longer than to read some small files."""
    refs = [ref("a.py", b"text"), ref("folder/b.py", b"more text"), ref("a.py", b"other")]
    one, two, changed = await read(threads, top, refs)
    assert (one, two) == (b"text", b"more")
    assert changed.reason == "ERROR_REASON_CONTENT_CHANGED"
    assert not threads.were_asked


async def test_a_file_that_is_not_in_memory_is_read_by_a_thread(
    threads: AskedThreads, top: Path
) -> None:
    """Red when the loop reads it by a plain `pread`: it would wait for the disk."""
    data = os.urandom(32 << 10).hex().encode()
    for name in ("other.py", "cold.py"):
        with (top / name).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if is_at_once(top / "other.py"):
        pytest.skip("the file system keeps all in memory")
    assert await read(threads, top, [ref("a.py", b"text"), ref("cold.py", data)]) == [
        b"text",
        data[:4],
    ]
    assert threads.were_asked


@pytest.mark.parametrize(
    ("size", "items", "where"),
    [
        (AT_ONCE_FILE_BYTES, 1, "loop"),
        (AT_ONCE_FILE_BYTES + 1, 1, "thread"),
        (AT_ONCE_FILE_BYTES, 1000, "loop"),
    ],
)
async def test_what_takes_long_is_read_by_a_thread(
    threads: AskedThreads, top: Path, size: int, items: int, where: str
) -> None:
    """Red when a file counts once for each of its ranges, which look at their own bytes alone."""
    data = b"x" * size
    (top / "large.py").write_bytes(data)
    assert await read(threads, top, [ref("large.py", data)] * items) == [b"xxxx"] * items
    assert threads.were_asked == (where == "thread")


@pytest.mark.parametrize(("items", "where"), [(16, "loop"), (17, "thread")])
async def test_ranges_of_many_bytes_are_read_by_a_thread(
    threads: AskedThreads, top: Path, items: int, where: str
) -> None:
    """Red when a range counts the same however long it is."""
    data = b"x" * AT_ONCE_FILE_BYTES
    (top / "large.py").write_bytes(data)
    answer = await read(threads, top, [ref("large.py", data, len(data))] * items)
    assert answer == [data] * items
    assert threads.were_asked == (where == "thread")


@pytest.mark.parametrize(
    ("shape", "where"),
    [
        (((32 << 10) - 32, 1, 1), "loop"),
        (((32 << 10) - 31, 1, 1), "thread"),
        (((4 << 10) - 32, 8, 1), "loop"),
        (((4 << 10) - 31, 8, 1), "thread"),
        ((900, 1, 900), "loop"),
        ((1000, 1, 1000), "thread"),
        ((2000, 1, 2000), "thread"),
    ],
)
async def test_texts_of_many_bytes_or_pieces_are_read_by_a_thread(
    threads: AskedThreads, top: Path, shape: tuple[int, int, int], where: str
) -> None:
    """To bring a text into its normal form takes up to 100 ns a byte, and 3 us a piece.

    Red when the file alone counts: eight texts of 128 KiB held the loop up for 20 ms, or 100.
    """
    size, items, pieces = shape
    data = b"x" * size
    (top / "nodes.py").write_bytes(data)
    spans = tuple(Span(n * size // pieces, (n + 1) * size // pieces) for n in range(pieces))
    text = "\n".join("x" * (end - start) for start, end in spans)
    wanted = ContentRef("nodes.py", spans, file_digest(data), content_hash(text))
    own = Reader(threads, FileLoader(MIB), permits=2, max_answer_bytes=MIB)
    answer = await own.read_contents(partial(open_tree, top), [wanted] * items)
    assert answer == [NodeContent(text, content_hash(text))] * items
    assert threads.were_asked == (where == "thread")


@pytest.mark.parametrize(
    ("pieces", "thread"), [(FEW_PIECES, "MainThread"), (FEW_PIECES + 1, "t_0")]
)
async def test_a_request_of_very_many_pieces_is_taken_apart_by_a_thread(
    top: Path, monkeypatch: pytest.MonkeyPatch, pieces: int, thread: str
) -> None:
    """Red when the loop does it: a message of 4 MB, of 64 that it may have, held it for 0.6 s."""
    request = snippet_service_pb2.ReadContentsRequest()
    for start in range(0, pieces, 100):
        ref = request.refs.add(path="a.py", file_digest=bytes(32), content_hash=bytes(32))
        for number in range(start, min(pieces, start + 100)):
            ref.segments.add(start_byte=number, end_byte=number + 1)
    names: list[str] = []
    plain = convert.content_refs

    def noted(request: snippet_service_pb2.ReadContentsRequest) -> list[ContentRef]:
        names.append(threading.current_thread().name)
        return plain(request)

    monkeypatch.setattr(convert, "content_refs", noted)
    roots = Roots([Root("test", str(top), SymlinkPolicy.DENY)])
    request.tree.root = "roots/test"
    with ThreadPoolExecutor(1, "t") as executor:
        own = Reader(executor, FileLoader(MIB), permits=1, max_answer_bytes=MIB)
        answer = await SnippetServicer(roots, own, executor).ReadContents(request, None)
    assert names == [thread]
    assert len(answer.results) == len(request.refs)


@pytest.mark.parametrize("files", [6, 2], ids=["long", "short"])
async def test_calls_take_turns_in_the_loop_and_others_come_between(
    threads: AskedThreads, top: Path, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    """Red when a call reads to its end, goes to a thread for want of time, or waits for no turn."""
    clock = iter(range(1000))
    monkeypatch.setattr("services.io.reader.time.perf_counter", lambda: next(clock))
    monkeypatch.setattr(reader, "AT_ONCE_SECONDS", 3)  # two files
    names = [f"{call}{number}" for call in "ab" for number in range(files)]
    for name in names:
        (top / name).write_bytes(name.encode())
    told: list[str] = []
    plain = Tree.open_file

    def noted(tree: Tree, path: str) -> Any:
        told.append(path)
        return plain(tree, path)

    async def others() -> None:
        while True:
            told.append("|")
            await asyncio.sleep(0)

    monkeypatch.setattr(Tree, "open_file", noted)
    own = Reader(threads, FileLoader(4 * MIB), permits=2, max_answer_bytes=4 * MIB)
    async with asyncio.TaskGroup() as group:
        calls = [
            group.create_task(
                own.read_snippets(
                    partial(open_tree, top),
                    [ref(name, name.encode(), 2) for name in names if name[0] == call],
                )
            )
            for call in "ab"
        ]
        other = group.create_task(others())
        await asyncio.wait(calls)
        other.cancel()
    assert [call.result() for call in calls] == [
        [name.encode() for name in names if name[0] == call] for call in "ab"
    ]
    turns = [turn for turn in "".join(told).split("|") if turn]
    assert sorted("".join(turns)) == sorted("".join(names))
    assert max(len(turn) for turn in turns) == len("a0a1")
    assert turns[:4] == ["a0a1", "b0b1", "a2a3", "b2b3"][: len(turns)]
    assert len(turns) == files
    assert not threads.were_asked


@pytest.mark.parametrize("what", ["network", "old kernel", "no file system that tells"])
async def test_where_it_may_wait_the_loop_reads_nothing(
    threads: AskedThreads, top: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server far away is asked at each open, whatever is in memory."""
    if what == "network":
        monkeypatch.setattr(paths, "answers_at_once", lambda _: False)
    elif what == "old kernel":
        monkeypatch.setattr(beneath, "_SYS_OPENAT2", 100_000)
    else:

        def refuse(*_: Any) -> int:
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr("services.io.reading.os.preadv", refuse)
    assert await read(threads, top, [ref("a.py", b"text")]) == [b"text"]
    assert threads.were_asked


@pytest.mark.parametrize("size", [3, 5])
def test_a_file_that_changed_its_size_is_not_read_at_once(top: Path, size: int) -> None:
    """Red when one that grew is cut off."""
    with (top / "a.py").open("rb") as file, pytest.raises(WouldWaitError):
        reading.read_at_once(file.fileno(), size)


@pytest.mark.skipif(not os.path.ismount("/dev/shm"), reason="there is no such mount")
def test_a_mount_beneath_the_tree_is_not_entered_at_once() -> None:
    """What is mounted there may be far away: red when the kernel is not told to stay."""
    root = Root("r", "/dev", SymlinkPolicy.WITHIN_ROOT)
    with NamedTemporaryFile(dir="/dev/shm") as file, Tree(root) as patient:
        path = file.name.removeprefix("/dev/")
        os.close(patient.open_file(path)[0])
        with Tree(root, waits=False) as hurried, pytest.raises(WouldWaitError):
            hurried.open_file(path)


def test_roots_are_not_looked_at_where_nothing_may_wait(tmp_path: Path) -> None:
    """Red when the loop itself reads the file that replicas share."""
    now = [0.0]
    folder = tmp_path / "tree"
    folder.mkdir()
    known = Root("known", str(folder), SymlinkPolicy.WITHIN_ROOT)
    roots = Roots([known], file=RootFile(str(tmp_path)), clock=lambda: now[0])
    assert roots.get("roots/known", waits=False) == known
    with pytest.raises(WouldWaitError):
        roots.get("roots/unknown", waits=False)
    now[0] = REFRESH_SECONDS
    with pytest.raises(WouldWaitError):
        roots.get("roots/known", waits=False)
    assert roots.get("roots/known") == known
    assert roots.get("roots/known", waits=False) == known
