"""A call that has begun is answered to its end, though its root is removed meanwhile."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from blake3 import blake3

from lodestone.io.v1 import (
    edit_service_pb2,
    scan_service_pb2,
    snippet_service_pb2,
    tree_pb2,
)
from services.io.checker import CHUNK_FILES, Checker
from services.io.loader import FileLoader
from services.io.memory_journal import MemoryJournal
from services.io.model import Root, SymlinkPolicy
from services.io.names import NameRules
from services.io.origins import Origins
from services.io.reader import AT_ONCE_FILE_BYTES, Reader
from services.io.root_rules import RootRules
from services.io.roots import Roots
from services.io.scanner import ScanRules
from services.io.servicers.edits import EditServicer
from services.io.servicers.scan import ScanServicer
from services.io.servicers.snippets import SnippetServicer
from services.io.writer import Writer, WriteRules
from services.runtime.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.unit.io.harness import MakeFiles

LIMIT = 1 << 20
TREE = tree_pb2.Tree(root="roots/added")
DATA = b"x" * (AT_ONCE_FILE_BYTES + 1)  # too large for the loop, which looks first
NAMES = [f"f{number:03}" for number in range(CHUNK_FILES + 1)]


class RemovingThread(ThreadPoolExecutor):
    """One thread that removes the root before the given piece of work."""

    def __init__(self, roots: Roots, before: int) -> None:
        super().__init__(1)
        self._roots = roots
        self._left = before

    def submit(self, fn: Callable[..., Any], /, *args: Any, **named: Any) -> Future[Any]:
        def work() -> Any:
            self._left -= 1
            if self._left == 0:
                self._roots.delete("roots/added")
            return fn(*args, **named)

        return super().submit(work)


@pytest.fixture
def roots(make_files: MakeFiles) -> Roots:
    top = make_files({"large": DATA, **dict.fromkeys(NAMES, "old")})
    made = Roots([], RootRules((str(top.parent),)))
    made.create(Root("added", str(top), SymlinkPolicy.DENY, read_only=False))
    return made


@pytest.fixture
def gone(roots: Roots) -> Iterator[None]:
    """Asserts that the root was removed."""
    yield
    with pytest.raises(NotFoundError):
        roots.get("roots/added")


@pytest.mark.usefixtures("gone")
@pytest.mark.parametrize("kind", ["snippets", "contents"])
async def test_a_read_goes_on_in_a_thread_after_its_root_is_removed(
    roots: Roots, kind: str
) -> None:
    """Red when each turn of a read looks its root up again."""
    item = {"path": "large", "file_digest": blake3(DATA).digest()}
    with RemovingThread(roots, 1) as threads:
        reader = Reader(threads, FileLoader(LIMIT), permits=1, max_answer_bytes=LIMIT)
        servicer = SnippetServicer(roots, reader, threads)
        if kind == "snippets":
            asked = snippet_service_pb2.ReadSnippetsRequest(tree=TREE)
            asked.refs.add(start_byte=0, end_byte=4, **item)
            [result] = (await servicer.ReadSnippets(asked, None)).results
            assert result.content == b"xxxx"
        else:
            wanted = snippet_service_pb2.ReadContentsRequest(tree=TREE)
            wanted.refs.add(content_hash=bytes(32), **item).segments.add(start_byte=0, end_byte=4)
            [answer] = (await servicer.ReadContents(wanted, None)).results
            assert "ERROR_REASON_CONTENT_CHANGED" in str(answer.error)


@pytest.mark.usefixtures("gone")
async def test_a_check_of_many_files_goes_on_after_its_root_is_removed(roots: Roots) -> None:
    """Red when each part of a check looks its root up again."""
    asked = scan_service_pb2.CheckFilesRequest(tree=TREE)
    for name in NAMES:
        asked.files.add(path=name, digest=blake3(b"old").digest())
    with RemovingThread(roots, 2) as threads:
        checker = Checker(threads, max_file_bytes=LIMIT)
        servicer = ScanServicer(roots, threads, ScanRules(LIMIT, NameRules()), checker)
        answer = await servicer.CheckFiles(asked, None)
    assert {result.verdict for result in answer.results} == {
        scan_service_pb2.CheckFileResult.VERDICT_UNCHANGED
    }


async def test_no_call_looks_a_root_up_in_the_loop(
    roots: Roots, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What replicas share may lie on a slow disk. Red when a write asks before it has a thread."""
    threads: set[str] = set()
    get = Roots.get

    def noted(self: Roots, name: str, *, waits: bool = True) -> Root:
        if waits:
            threads.add(threading.current_thread().name)
        return get(self, name, waits=waits)

    monkeypatch.setattr(Roots, "get", noted)
    asked = edit_service_pb2.CreateFileRequest(tree=TREE, request_id="1" * 32, path="new")
    with ThreadPoolExecutor(1, "for-writes") as executor:
        writer = Writer(roots, MemoryJournal(), Origins(), executor, WriteRules(LIMIT))
        await EditServicer(writer).CreateFile(asked, None)
        await writer.close()
    assert threads == {"for-writes_0"}


@pytest.mark.usefixtures("gone")
async def test_a_write_of_many_files_goes_on_after_its_root_is_removed(
    roots: Roots, tmp_path: Path
) -> None:
    """Red when each file of a write looks its root up again: half of them would be written."""
    asked = edit_service_pb2.ApplyEditsRequest(tree=TREE, request_id="1" * 32)
    for name in NAMES:
        ref = snippet_service_pb2.SnippetRef(
            path=name, start_byte=0, end_byte=3, file_digest=blake3(b"old").digest()
        )
        asked.edits.add(ref=ref, replacement=b"new")
    with RemovingThread(roots, 2) as threads:
        writer = Writer(roots, MemoryJournal(), Origins(), threads, WriteRules(LIMIT))
        answer = await EditServicer(writer).ApplyEdits(asked, None)
        await writer.close()
    assert all(result.HasField("edited") for result in answer.results)
    assert {(tmp_path / "tree" / name).read_text() for name in NAMES} == {"new"}
