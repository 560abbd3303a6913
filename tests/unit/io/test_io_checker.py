"""Which known files changed: by signature where it proves it, by digest where it does not."""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lodestone.io.v1 import scan_service_pb2, scan_service_pb2_grpc, tree_pb2
from services.io.checker import CHUNK_FILES, Checker
from services.io.model import KnownFile, Root, Signature, SymlinkPolicy, Verdict
from services.io.paths import Tree
from services.io.signatures import signature_of
from services.runtime.errors import LodestoneError
from services.runtime.status import read_rpc_error, read_status
from tests.unit.io.harness import MakeFiles, held_paths, open_tree, serve, unprivileged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from services.io.model import CheckedFile

LIMIT = 1 << 20
TREE = tree_pb2.Tree(root="roots/test")


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


def check(
    executor: ThreadPoolExecutor, top: Path, *files: KnownFile, policy: str = "within_root"
) -> list[CheckedFile]:
    checker = Checker(executor, max_file_bytes=LIMIT)
    return asyncio.run(checker.check(lambda: open_tree(top, SymlinkPolicy(policy)), files))


def known(top: Path, path: str, *, settled: bool = False, digest: bool = True) -> KnownFile:
    """Returns a file as who read it just now knows it; `settled` as who read it long after."""
    signature = signature_of((top / path).stat())._replace(settled=settled)
    content = (top / path).read_bytes()
    return KnownFile(path, signature, blake3(content).digest() if digest else b"")


def reason(result: CheckedFile) -> str:
    assert result.verdict is Verdict.UNKNOWN
    assert isinstance(result.error, LodestoneError)
    return result.error.reason.removeprefix("ERROR_REASON_")


def edit(place: Path, content: bytes) -> None:
    """Writes until the file system's clock has ticked, and puts the old mtime back."""
    before = place.stat()
    deadline = time.monotonic() + 10
    while place.stat().st_ctime_ns == before.st_ctime_ns:
        assert time.monotonic() < deadline
        place.write_bytes(content)
        os.utime(place, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_each_file_has_its_verdict_in_the_order_of_the_request(
    make_files: MakeFiles, executor: ThreadPoolExecutor
) -> None:
    top = make_files({"same.py": "a", "edited.py": "a", "gone.py": "a", "sub/deep.py": "a"})
    files = [known(top, path) for path in ("gone.py", "edited.py", "sub/deep.py", "same.py")]
    (top / "gone.py").unlink()
    (top / "edited.py").write_text("b")
    results = check(executor, top, *files, KnownFile("never.py"), KnownFile("same.py/x"))
    assert [r.verdict.name for r in results] == [
        "GONE", "CHANGED", "UNCHANGED", "UNCHANGED", "GONE", "GONE",
    ]  # fmt: skip
    assert results[1].digest == blake3(b"b").digest()
    assert results[1].signature is not None
    assert results[1].signature[:4] == signature_of((top / "edited.py").stat())[:4]


def test_a_settled_signature_proves_a_file_unchanged_unread(
    make_files: MakeFiles, executor: ThreadPoolExecutor
) -> None:
    """What was read has a digest; this has none, though the digest named is another one.

    Red when the signature is not asked first.
    """
    top = make_files({"a.py": "a"})
    file = known(top, "a.py", settled=True)
    [result] = check(executor, top, KnownFile("a.py", file.signature, b"\0" * 32))
    assert (result.verdict, result.signature, result.digest) == (
        Verdict.UNCHANGED, file.signature, b"",
    )  # fmt: skip


def test_an_edit_that_keeps_size_and_mtime_is_noticed_by_its_ctime(
    make_files: MakeFiles, executor: ThreadPoolExecutor
) -> None:
    """Red when signatures are compared without ctime."""
    top = make_files({"a.py": "aaaa"})
    file = known(top, "a.py", settled=True)
    edit(top / "a.py", b"bbbb")
    assert file.signature is not None
    assert (top / "a.py").stat().st_mtime_ns == file.signature.mtime_ns
    [result] = check(executor, top, file)
    assert (result.verdict, result.digest) == (Verdict.CHANGED, blake3(b"bbbb").digest())


def test_an_edit_that_shows_in_no_signature_is_noticed_as_the_file_was_racy(
    make_files: MakeFiles, executor: ThreadPoolExecutor
) -> None:
    """A write in the clock tick of the read leaves the signature as it is.

    Red when an equal signature proves without being settled.
    """
    top = make_files({"a.py": "bbbb"})
    racy = KnownFile("a.py", signature_of((top / "a.py").stat()), blake3(b"aaaa").digest())
    [result] = check(executor, top, racy)
    assert result.verdict is Verdict.CHANGED


def test_a_file_that_was_touched_alone_is_unchanged_and_has_a_new_signature(
    make_files: MakeFiles, executor: ThreadPoolExecutor
) -> None:
    top = make_files({"a.py": "a"})
    file = known(top, "a.py", settled=True)
    os.utime(top / "a.py", ns=(1, 1))
    [result] = check(executor, top, file)
    assert (result.verdict, result.digest) == (Verdict.UNCHANGED, file.digest)
    assert result.signature is not None
    assert result.signature.mtime_ns == 1


def test_what_nothing_shows_to_be_the_same_counts_as_changed(
    make_files: MakeFiles, executor: ThreadPoolExecutor
) -> None:
    top = make_files({"a.py": "a"})
    racy = known(top, "a.py", digest=False)
    results = check(executor, top, racy, KnownFile("a.py"), KnownFile("a.py", None, b"short"))
    assert [r.verdict for r in results] == [Verdict.CHANGED] * 3
    assert {r.digest for r in results} == {blake3(b"a").digest()}


def test_a_file_named_twice_is_judged_by_what_each_item_knows(
    make_files: MakeFiles, executor: ThreadPoolExecutor
) -> None:
    top = make_files({"a.py": "a"})
    results = check(
        executor,
        top,
        known(top, "a.py", settled=True),
        KnownFile("a.py", None, blake3(b"x").digest()),
        KnownFile("a.py", None, blake3(b"a").digest()),
    )
    assert [r.verdict.name for r in results] == ["UNCHANGED", "CHANGED", "UNCHANGED"]


def test_what_cannot_be_looked_at_is_unknown_and_never_gone(
    make_files: MakeFiles, tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    top = make_files({"a.py": "a", "dir/x.py": "", "big.py": "x" * (LIMIT + 1), "ok.py": "a"})
    (tmp_path / "outside.py").write_text("a")
    (top / "out.py").symlink_to(tmp_path / "outside.py")
    os.mkfifo(top / "pipe")
    paths = ["dir", "big.py", "out.py", "pipe", "../outside.py", "/etc/passwd", "a\0b"]
    *results, last = check(executor, top, *map(KnownFile, paths), known(top, "ok.py"))
    assert [reason(r) for r in results] == [
        "FILE_NOT_REGULAR", "FILE_TOO_LARGE", "PATH_OUTSIDE_TREE", "FILE_NOT_REGULAR",
        "PATH_OUTSIDE_TREE", "PATH_OUTSIDE_TREE", "PATH_OUTSIDE_TREE",
    ]  # fmt: skip
    assert last.verdict is Verdict.UNCHANGED


def test_an_unreadable_folder_hides_its_files_and_does_not_delete_them(
    make_files: MakeFiles, executor: ThreadPoolExecutor
) -> None:
    """Red when every error of opening counts as gone."""
    top = make_files({"shut/a.py": "a", "b.py": "b"})
    files = [known(top, "shut/a.py"), known(top, "b.py")]
    (top / "shut").chmod(0)
    for parent in (top, *top.parents[: len(top.parents) - len(Path(tempfile.gettempdir()).parts)]):
        parent.chmod(parent.stat().st_mode | 0o055)
    with unprivileged():
        hidden, plain = check(executor, top, *files)
    assert reason(hidden) == "FILE_UNREADABLE"
    assert plain.verdict is Verdict.UNCHANGED


def test_a_file_that_is_written_to_while_it_is_read_is_unknown(
    make_files: MakeFiles, executor: ThreadPoolExecutor
) -> None:
    top = make_files({"a.log": "x" * (LIMIT // 2)})
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            with (top / "a.log").open("r+b") as file:
                file.write(os.urandom(8))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        deadline = time.monotonic() + 30
        while True:
            [result] = check(executor, top, KnownFile("a.log"))
            if result.verdict is Verdict.UNKNOWN:
                break
            assert time.monotonic() < deadline
    finally:
        done.set()
        writer.join()
    assert reason(result) == "CONTENT_CHANGED"


def test_a_tree_that_is_gone_fails_the_call(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    """Told file by file it would look like deletions."""
    with pytest.raises(LodestoneError, match="does not exist"):
        check(executor, tmp_path / "none", KnownFile("a.py"))


EDITS = st.sampled_from(["leave", "touch", "same", "other", "grow", "delete", "replace"])


@given(edits=st.lists(EDITS, min_size=1, max_size=150), settled=st.booleans())
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_verdicts_are_those_of_comparing_bytes(
    tmp_path: Path, executor: ThreadPoolExecutor, edits: list[str], *, settled: bool
) -> None:
    files: list[KnownFile] = []
    for number in range(len(edits)):
        (tmp_path / f"f{number}").write_bytes(b"aaaa")
        files.append(known(tmp_path, f"f{number}", settled=settled))
    for number, what in enumerate(edits):
        _apply(tmp_path / f"f{number}", what)
    expected = [
        {"delete": "GONE", "leave": "UNCHANGED", "touch": "UNCHANGED", "same": "UNCHANGED"}.get(
            what, "CHANGED"
        )
        for what in edits
    ]
    assert [r.verdict.name for r in check(executor, tmp_path, *files)] == expected
    assert [r.verdict.name for r in check(executor, tmp_path, *files)] == expected


def _apply(place: Path, what: str) -> None:
    match what:
        case "touch":
            os.utime(place)
        case "same":
            place.write_bytes(b"aaaa")
        case "other":
            edit(place, b"bbbb")
        case "grow":
            place.write_bytes(b"aaaaa")
        case "delete":
            place.unlink()
        case "replace":
            place.with_suffix(".new").write_bytes(b"bbbb")
            place.with_suffix(".new").rename(place)


def message(file: KnownFile) -> scan_service_pb2.KnownFile:
    signature = file.signature or Signature(0, 0, 0, 0)
    return scan_service_pb2.KnownFile(
        path=file.path,
        signature=tree_pb2.FileSignature(**signature._asdict()),
        digest=file.digest,
    )


async def test_thousands_of_files_are_checked_in_one_call_in_order(
    make_files: MakeFiles, tmp_path: Path
) -> None:
    top = make_files({f"d{i % 20}/f{i}.py": f"{i}" for i in range(2000)})
    files = [known(top, f"d{i % 20}/f{i}.py", settled=i % 3 == 0) for i in range(2000)]
    for i in range(0, 2000, 7):
        (top / f"d{i % 20}/f{i}.py").unlink()
    request = scan_service_pb2.CheckFilesRequest(tree=TREE, files=map(message, files))
    async with serve(top, tmp_path / "s") as channel:
        stub: Any = scan_service_pb2_grpc.ScanServiceStub(channel)
        answer = await stub.CheckFiles(request)
    verdict = scan_service_pb2.CheckFileResult.Verdict
    assert [r.verdict for r in answer.results] == [
        verdict.VERDICT_UNCHANGED if i % 7 else verdict.VERDICT_GONE for i in range(2000)
    ]
    assert {len(r.digest) for i, r in enumerate(answer.results) if i % 7 and i % 3} == {32}
    assert {r.digest for i, r in enumerate(answer.results) if i % 3 == 0} == {b""}


async def test_callers_see_the_reason_and_no_absolute_path(
    make_files: MakeFiles, tmp_path: Path
) -> None:
    top = make_files({"a/b.py": ""})
    request = scan_service_pb2.CheckFilesRequest(
        tree=TREE, files=[scan_service_pb2.KnownFile(path="a")]
    )
    gone = scan_service_pb2.CheckFilesRequest(
        tree=tree_pb2.Tree(root="roots/test", directory="none"), files=request.files
    )
    async with serve(top, tmp_path / "s") as channel:
        stub: Any = scan_service_pb2_grpc.ScanServiceStub(channel)
        [result] = (await stub.CheckFiles(request)).results
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.CheckFiles(gone)
    error = read_status(result.error)
    assert error.reason == "ERROR_REASON_FILE_NOT_REGULAR"
    assert error.metadata == {"path": "a"}
    assert str(tmp_path) not in str(result)
    assert read_rpc_error(raised.value).metadata == {"path": "none"}


class SlowTree(Tree):
    """A tree whose files open one at a time, each when the test lets it."""

    def __init__(self, top: Path, opened: Callable[[], None], may_open: threading.Event) -> None:
        super().__init__(Root("test", str(top), SymlinkPolicy.DENY))
        self._opened = opened
        self._may_open = may_open

    def open_file(self, path: str) -> tuple[int, os.stat_result]:
        self._opened()
        assert self._may_open.wait(30)
        return super().open_file(path)


async def test_a_check_that_the_caller_leaves_stops_and_closes_its_descriptors(
    make_files: MakeFiles,
) -> None:
    """Red (64 files are opened) when the thread does not ask whether the call was cancelled."""
    top = make_files({f"f{i}.py": "x" for i in range(CHUNK_FILES)})
    loop, opens, may_open = asyncio.get_running_loop(), [], threading.Event()
    first = asyncio.Event()

    def opened() -> None:
        opens.append(1)
        loop.call_soon_threadsafe(first.set)

    files = [KnownFile(f"f{i}.py") for i in range(CHUNK_FILES)]
    executor = ThreadPoolExecutor(2)
    checker = Checker(executor, max_file_bytes=LIMIT)
    checking = asyncio.create_task(checker.check(lambda: SlowTree(top, opened, may_open), files))
    async with asyncio.timeout(30):
        await first.wait()
    checking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await checking
    may_open.set()
    await asyncio.to_thread(executor.shutdown)
    assert len(opens) == 1
    assert not [path for path in held_paths() if path.startswith(str(top))]
