"""The io service as its callers see it."""

from __future__ import annotations

import gc
import os
import time
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from blake3 import blake3

from lodestone.io.v1 import (
    parse_service_pb2,
    parse_service_pb2_grpc,
    root_service_pb2,
    root_service_pb2_grpc,
    scan_service_pb2,
    scan_service_pb2_grpc,
    snippet_service_pb2,
    snippet_service_pb2_grpc,
    tree_pb2,
)
from services.runtime.status import read_rpc_error, read_status
from tests.unit.io.harness import MakeFiles, held_paths, serve

if TYPE_CHECKING:
    from pathlib import Path

TREE = tree_pb2.Tree(root="roots/test")
SOURCE = (
    "import os\n\n\ndef first():\n    return 1\n\n\nclass A:\n    def m(self):\n        return 2\n"
)


async def parse(channel: grpc.aio.Channel, tree: tree_pb2.Tree = TREE, **request: Any) -> list[Any]:
    stub: Any = parse_service_pb2_grpc.ParseServiceStub(channel)
    message = parse_service_pb2.ParseFilesRequest(tree=tree, **request)
    return [answer async for answer in stub.ParseFiles(message)]


def file(path: str, known: bytes = b"") -> parse_service_pb2.FileToParse:
    return parse_service_pb2.FileToParse(path=path, known_digest=known)


@pytest.mark.slow
async def test_a_file_is_scanned_parsed_and_its_nodes_are_read(
    make_files: MakeFiles, tmp_path: Path
) -> None:
    top = make_files({"a.py": SOURCE, "sub/b.py": "x = 1\n", "c.bin": b"\0\1"})
    async with serve(top, tmp_path / "s") as channel:
        scan: Any = scan_service_pb2_grpc.ScanServiceStub(channel)
        scanned = [m async for m in scan.ScanTree(scan_service_pb2.ScanTreeRequest(tree=TREE))]
        answers = await parse(channel, files=[file("a.py"), file("gone.py")])
        parsed = next(a.parsed for a in answers if a.index == 0)
        refs = [
            snippet_service_pb2.ContentRef(
                path="a.py",
                segments=node.segments
                or [
                    parse_service_pb2.ByteRange(start_byte=node.start_byte, end_byte=node.end_byte)
                ],
                file_digest=parsed.digest,
                content_hash=node.content_hash,
            )
            for node in parsed.nodes
        ]
        snippet: Any = snippet_service_pb2_grpc.SnippetServiceStub(channel)
        texts = await snippet.ReadContents(
            snippet_service_pb2.ReadContentsRequest(tree=TREE, refs=refs)
        )

    assert [f.path for m in scanned for f in m.files] == ["a.py", "sub/b.py"]
    assert scanned[-1].summary.files == 2
    assert scanned[-1].summary.directories == 2
    assert parsed.digest == blake3(SOURCE.encode()).digest()
    assert [n.qualified_name for n in parsed.nodes] == ["", "first", "A", "A.m"]
    assert [r.content.text for r in texts.results] == [
        "import os",
        "def first():\n    return 1",
        "class A:\ndef m(self):",
        "def m(self):\n    return 2",
    ]
    gone = next(a.error for a in answers if a.index == 1)
    assert read_status(gone).reason == "ERROR_REASON_FILE_NOT_FOUND"
    assert read_status(gone).metadata == {"path": "gone.py"}


@pytest.mark.slow
async def test_a_file_with_the_known_digest_is_not_parsed(
    make_files: MakeFiles, tmp_path: Path
) -> None:
    top = make_files({"a.py": SOURCE})
    later = time.time() + 3600  # however long a worker takes to start, the file is no older
    os.utime(top / "a.py", (later, later))
    async with serve(top, tmp_path / "s") as channel:
        [answer] = await parse(channel, files=[file("a.py", blake3(SOURCE.encode()).digest())])
    assert answer.WhichOneof("outcome") == "unchanged"
    assert answer.unchanged.signature.size == len(SOURCE)
    assert not answer.unchanged.signature.settled


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [10_000_000_000, -2_000_000_000])
async def test_a_file_of_another_century_is_scanned_parsed_and_checked(
    make_files: MakeFiles, tmp_path: Path, seconds: int
) -> None:
    """Red for the year 2286, which is no number of nanoseconds in 64 bits: the scan failed."""
    top = make_files({"a.py": SOURCE, "b.py": SOURCE})
    os.utime(top / "a.py", (seconds, seconds))
    async with serve(top, tmp_path / "s") as channel:
        stub: Any = scan_service_pb2_grpc.ScanServiceStub(channel)
        scanned = [m async for m in stub.ScanTree(scan_service_pb2.ScanTreeRequest(tree=TREE))]
        [answer] = await parse(channel, files=[file("a.py")])
        signature = answer.parsed.signature
        known = scan_service_pb2.KnownFile(path="a.py", signature=signature)
        checked = await stub.CheckFiles(
            scan_service_pb2.CheckFilesRequest(tree=TREE, files=[known])
        )

    assert [f.path for m in scanned for f in m.files] == ["a.py", "b.py"]
    assert scanned[0].files[0].signature.mtime_ns == signature.mtime_ns
    assert not (signature.settled and seconds > time.time())
    assert checked.results[0].signature.mtime_ns == signature.mtime_ns


async def test_a_missing_folder_is_told_by_the_path_that_the_caller_gave(
    make_files: MakeFiles, tmp_path: Path
) -> None:
    top = make_files({})
    tree = tree_pb2.Tree(root="roots/test", directory="no/such")
    async with serve(top, tmp_path / "s") as channel:
        scan: Any = scan_service_pb2_grpc.ScanServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            async for _ in scan.ScanTree(scan_service_pb2.ScanTreeRequest(tree=tree)):
                pass
        with pytest.raises(grpc.aio.AioRpcError) as unparsed:
            await parse(channel, tree, files=[file("a.py")])
    error = read_rpc_error(raised.value)
    assert read_rpc_error(unparsed.value) == error
    assert error.reason == "ERROR_REASON_FILE_NOT_FOUND"
    assert error.metadata == {"path": "no/such"}
    assert str(tmp_path) not in error.message


async def test_an_unknown_root_has_its_reason(make_files: MakeFiles, tmp_path: Path) -> None:
    top = make_files({})
    async with serve(top, tmp_path / "s") as channel:
        roots: Any = root_service_pb2_grpc.RootServiceStub(channel)
        listed = await roots.ListRoots(root_service_pb2.ListRootsRequest())
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await roots.GetRoot(root_service_pb2.GetRootRequest(name="roots/other"))
    assert [(r.name, r.path) for r in listed.roots] == [("roots/test", "")]
    assert read_rpc_error(unknown.value).reason == "ERROR_REASON_NOT_FOUND"


async def test_languages_come_in_pages(make_files: MakeFiles, tmp_path: Path) -> None:
    async with serve(make_files({}), tmp_path / "s") as channel:
        stub: Any = parse_service_pb2_grpc.ParseServiceStub(channel)
        names: list[str] = []
        token = ""
        while True:
            page = await stub.ListLanguages(
                parse_service_pb2.ListLanguagesRequest(page_size=7, page_token=token)
            )
            assert page.recipe
            names += [language.name for language in page.languages]
            token = page.next_page_token
            if not token:
                break
    assert len(names) == 16
    assert names == sorted(names)


@pytest.mark.slow
async def test_a_scan_that_the_caller_leaves_closes_its_descriptors(
    make_files: MakeFiles, tmp_path: Path
) -> None:
    top = make_files({f"d{i}/f{j}.py": "" for i in range(60) for j in range(50)})
    async with serve(top, tmp_path / "s") as channel:
        scan: Any = scan_service_pb2_grpc.ScanServiceStub(channel)
        call = scan.ScanTree(scan_service_pb2.ScanTreeRequest(tree=TREE))
        await call.read()
        call.cancel()
        # The next scan runs to its end, so that the first one's threads are free again.
        again = [m async for m in scan.ScanTree(scan_service_pb2.ScanTreeRequest(tree=TREE))]
    assert again[-1].summary.files == 3000
    assert not [path for path in held_paths() if path.startswith(str(top))]


@pytest.mark.slow
async def test_what_the_start_made_is_not_looked_through_for_garbage(
    make_files: MakeFiles, tmp_path: Path
) -> None:
    """Red with Python's own threshold: a scan of a large tree takes a 20th longer."""
    gc.unfreeze()
    gc.set_threshold(700)
    async with serve(make_files({"a.py": ""}), tmp_path / "s"):
        assert gc.get_freeze_count() > 10 * len(gc.get_objects())
        assert gc.get_threshold()[0] > 5_000
