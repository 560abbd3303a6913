"""Writes as callers of the io service see them."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from blake3 import blake3

from lodestone.io.v1 import (
    edit_service_pb2,
    edit_service_pb2_grpc,
    root_service_pb2,
    root_service_pb2_grpc,
    scan_service_pb2,
    scan_service_pb2_grpc,
    snippet_service_pb2,
    tree_pb2,
)
from services.runtime.status import read_rpc_error, read_status
from tests.unit.io.harness import MakeFiles, serve

if TYPE_CHECKING:
    from pathlib import Path

TREE = tree_pb2.Tree(root="roots/test")


def edit_of(
    path: str, before: bytes, start: int, end: int, replacement: bytes
) -> edit_service_pb2.Edit:
    ref = snippet_service_pb2.SnippetRef(
        path=path, start_byte=start, end_byte=end, file_digest=blake3(before).digest()
    )
    return edit_service_pb2.Edit(ref=ref, replacement=replacement)


def edits(*items: edit_service_pb2.Edit, request_id: str = "") -> Any:
    return edit_service_pb2.ApplyEditsRequest(
        request_id=request_id or str(uuid.uuid4()), tree=TREE, edits=items
    )


def creation(path: str, content: bytes, **options: Any) -> Any:
    return edit_service_pb2.CreateFileRequest(
        request_id=str(uuid.uuid4()), tree=TREE, path=path, content=content, **options
    )


async def test_edits_and_new_files_answer_with_digest_and_signature(
    make_files: MakeFiles, tmp_path: Path
) -> None:
    top = make_files({"a.py": "one two", "b.py": "b"})
    async with serve(top, tmp_path / "s", state_dir=str(tmp_path / "state")) as channel:
        stub: Any = edit_service_pb2_grpc.EditServiceStub(channel)
        asked = edits(
            edit_of("b.py", b"b", 0, 1, b"B"),
            edit_of("a.py", b"one two", 0, 3, b"1"),
            edit_of("gone.py", b"", 0, 0, b""),
            edit_of("a.py", b"one two", 4, 7, b"2"),
        )
        answer = await stub.ApplyEdits(asked)
        again = await stub.ApplyEdits(asked)
        made = await stub.CreateFile(creation("new/c.py", b"c", create_parents=True))
        scan: Any = scan_service_pb2_grpc.ScanServiceStub(channel)
        [scanned] = [m async for m in scan.ScanTree(scan_service_pb2.ScanTreeRequest(tree=TREE))]

    assert again == answer
    assert [r.path for r in answer.results] == ["b.py", "a.py", "gone.py"]
    assert (top / "a.py").read_bytes() == b"1 2"
    assert answer.results[1].edited.digest == blake3(b"1 2").digest()
    assert answer.results[1].edited.size_delta == -4
    assert read_status(answer.results[2].error).reason == "ERROR_REASON_FILE_NOT_FOUND"
    assert read_status(answer.results[2].error).metadata == {"path": "gone.py"}
    signatures = {f.path: f.signature for f in scanned.files}
    assert signatures["a.py"] == answer.results[1].edited.signature
    assert signatures["new/c.py"] == made.file.signature
    assert not signatures["a.py"].settled


@pytest.mark.parametrize(
    ("path", "if_exists", "expected"),
    [
        ("there", 0, ("ALREADY_EXISTS", "ALREADY_EXISTS")),
        ("no/parent", 0, ("NOT_FOUND", "FILE_NOT_FOUND")),
        ("../out", 0, ("INVALID_ARGUMENT", "PATH_OUTSIDE_TREE")),
        ("folder", 2, ("FAILED_PRECONDITION", "FILE_NOT_REGULAR")),
        ("", 0, ("INVALID_ARGUMENT", "INVALID_REQUEST")),
    ],
)
async def test_a_file_that_cannot_be_created_fails_the_call_with_its_reason(
    make_files: MakeFiles, tmp_path: Path, path: str, if_exists: int, expected: tuple[str, str]
) -> None:
    top = make_files({"there": "canary", "folder/x": ""})
    async with serve(top, tmp_path / "s") as channel:
        stub: Any = edit_service_pb2_grpc.EditServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.CreateFile(creation(path, b"x", if_exists=if_exists))
    error = read_rpc_error(raised.value)
    assert (error.code, error.reason.removeprefix("ERROR_REASON_")) == expected
    assert str(tmp_path) not in str(raised.value.details())
    assert "canary" not in str(error)


async def test_the_same_id_for_edits_and_for_a_file_is_refused(
    make_files: MakeFiles, tmp_path: Path
) -> None:
    top = make_files({"a": "a"})
    async with serve(top, tmp_path / "s") as channel:
        stub: Any = edit_service_pb2_grpc.EditServiceStub(channel)
        asked = creation("new", b"x")
        await stub.CreateFile(asked)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.ApplyEdits(edits(edit_of("a", b"a", 0, 1, b""), request_id=asked.request_id))
    error = read_rpc_error(raised.value)
    assert (error.code, error.reason) == ("ALREADY_EXISTS", "ERROR_REASON_REQUEST_ID_REUSED")
    assert (top / "a").read_text() == "a"


async def test_a_read_only_deployment_says_so(make_files: MakeFiles, tmp_path: Path) -> None:
    top = make_files({"a": "a"})
    async with serve(top, tmp_path / "s", read_only=True) as channel:
        stub: Any = edit_service_pb2_grpc.EditServiceStub(channel)
        roots: Any = root_service_pb2_grpc.RootServiceStub(channel)
        listed = await roots.ListRoots(root_service_pb2.ListRootsRequest())
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.ApplyEdits(edits(edit_of("a", b"a", 0, 1, b"")))
    error = read_rpc_error(raised.value)
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", "ERROR_REASON_READ_ONLY")
    assert [root.read_only for root in listed.roots] == [True]


async def test_an_unknown_root_and_a_bad_id_are_refused(
    make_files: MakeFiles, tmp_path: Path
) -> None:
    async with serve(make_files({"a": "a"}), tmp_path / "s") as channel:
        stub: Any = edit_service_pb2_grpc.EditServiceStub(channel)
        other = edits(edit_of("a", b"a", 0, 1, b""))
        other.tree.root = "roots/other"
        for asked, reason in (
            (other, "NOT_FOUND"),
            (edits(edit_of("a", b"a", 0, 1, b""), request_id="no-uuid"), "INVALID_REQUEST"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await stub.ApplyEdits(asked)
            assert read_rpc_error(raised.value).reason == f"ERROR_REASON_{reason}"


async def test_overlapping_edits_name_their_fields(make_files: MakeFiles, tmp_path: Path) -> None:
    async with serve(make_files({"a": "abc"}), tmp_path / "s") as channel:
        stub: Any = edit_service_pb2_grpc.EditServiceStub(channel)
        answer = await stub.ApplyEdits(
            edits(edit_of("a", b"abc", 0, 2, b""), edit_of("a", b"abc", 1, 3, b""))
        )
    [result] = answer.results
    assert read_status(result.error).reason == "ERROR_REASON_INVALID_REQUEST"
    assert "edits[1].ref" in str(result.error)
