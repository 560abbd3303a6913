"""Callers add and remove roots where the server was told to let them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import pytest

from lodestone.io.v1 import (
    root_service_pb2,
    root_service_pb2_grpc,
    scan_service_pb2,
    scan_service_pb2_grpc,
    tree_pb2,
)
from services.runtime.status import RemoteError, read_rpc_error
from tests.unit.io.harness import MakeFiles, serve

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from pathlib import Path

DENY = root_service_pb2.SYMLINK_POLICY_DENY


class Caller:
    """A caller of the root service and of scans."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._roots: Any = root_service_pb2_grpc.RootServiceStub(channel)
        self._scans: Any = scan_service_pb2_grpc.ScanServiceStub(channel)

    async def create(self, root_id: str, path: Path | str, policy: Any = DENY) -> Any:
        root = root_service_pb2.Root(path=str(path), symlink_policy=policy)
        request = root_service_pb2.CreateRootRequest(root_id=root_id, root=root)
        return (await self._roots.CreateRoot(request)).root

    async def delete(self, root_id: str) -> None:
        await self._roots.DeleteRoot(root_service_pb2.DeleteRootRequest(name=f"roots/{root_id}"))

    async def listed(self) -> list[Any]:
        return list((await self._roots.ListRoots(root_service_pb2.ListRootsRequest())).roots)

    def scan(self, root_id: str) -> Any:
        tree = tree_pb2.Tree(root=f"roots/{root_id}")
        return self._scans.ScanTree(scan_service_pb2.ScanTreeRequest(tree=tree))

    async def paths(self, root_id: str) -> list[str]:
        return [file.path async for answer in self.scan(root_id) for file in answer.files]


async def refused(call: Awaitable[object]) -> RemoteError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return read_rpc_error(raised.value)


async def test_a_root_is_added_used_and_removed_without_a_restart(
    make_files: MakeFiles, tmp_path: Path
) -> None:
    top = make_files({"first/a": "", "second/b": ""})
    options = {"root_parents": str(top)}
    async with serve(top / "first", tmp_path / "s", **options) as channel:
        caller = Caller(channel)
        assert (await refused(caller.paths("new"))).reason == "ERROR_REASON_NOT_FOUND"
        root = await caller.create("new", top / "second")
        paths = await caller.paths("new")
        listed = await caller.listed()
        await caller.delete("new")
        gone = await refused(caller.paths("new"))
        fixed = await refused(caller.delete("test"))
        again = await refused(caller.delete("new"))
    assert (root.name, root.path) == ("roots/new", str(top / "second"))
    assert paths == ["b"]
    assert [r.name for r in listed] == ["roots/new", "roots/test"]
    assert gone.reason == again.reason == "ERROR_REASON_NOT_FOUND"
    assert (fixed.code, fixed.reason) == ("FAILED_PRECONDITION", "ERROR_REASON_STATE_CONFLICT")


async def test_added_roots_are_there_after_a_restart(make_files: MakeFiles, tmp_path: Path) -> None:
    """Red without `Roots.load` at the start: a miss alone would find them, a list would not."""
    top = make_files({"first/a": "", "second/b": ""})
    options = {"root_parents": str(top), "state_dir": str(tmp_path / "state")}
    async with serve(top / "first", tmp_path / "s", **options) as channel:
        await Caller(channel).create("new", top / "second")
    async with serve(top / "first", tmp_path / "s", **options) as channel:
        assert [r.name for r in await Caller(channel).listed()] == ["roots/new", "roots/test"]
        assert await Caller(channel).paths("new") == ["b"]


async def test_without_a_folder_to_add_in_roots_are_refused_and_their_paths_kept(
    make_files: MakeFiles, tmp_path: Path
) -> None:
    """Red when adding is allowed by default: whoever connects could read any folder."""
    top = make_files({"a": ""})
    async with serve(top, tmp_path / "s") as channel:
        caller = Caller(channel)
        errors = [await refused(caller.create("new", top)), await refused(caller.delete("test"))]
        listed = await caller.listed()
    for error in errors:
        assert (error.code, error.reason) == ("PERMISSION_DENIED", "ERROR_REASON_FORBIDDEN")
        assert "LODESTONE_IO_ROOT_PARENTS" in error.message
    assert [(r.name, r.path) for r in listed] == [("roots/test", "")]


async def test_what_is_wrong_with_a_root_is_said(make_files: MakeFiles, tmp_path: Path) -> None:
    top = make_files({"a/f": ""})
    async with serve(top, tmp_path / "s", root_parents=str(top)) as channel:
        caller = Caller(channel)
        invalid = [
            await refused(caller.create("new", top / "a", policy=0)),
            await refused(caller.create("new", top / "a", policy=9)),
            await refused(caller.create("new", "a")),
            await refused(caller.create("New", top / "a")),
        ]
        missing = await refused(caller.create("new", top / "none"))
        outside = await refused(caller.create("new", "/etc"))
        other = await refused(caller.create("test", top / "a"))
    assert {error.reason for error in invalid} == {"ERROR_REASON_INVALID_REQUEST"}
    assert missing.reason == "ERROR_REASON_FILE_NOT_FOUND"
    assert outside.reason == "ERROR_REASON_FORBIDDEN"
    assert (other.code, other.reason) == ("ALREADY_EXISTS", "ERROR_REASON_ALREADY_EXISTS")


@pytest.mark.slow
async def test_a_call_in_flight_finishes_when_its_root_is_removed(
    make_files: MakeFiles, tmp_path: Path
) -> None:
    """Red when each batch of a scan asks for its root again."""
    top = make_files({f"new/d{i}/f{j}": "" for i in range(60) for j in range(50)})
    async with serve(top, tmp_path / "s", root_parents=str(top)) as channel:
        caller = Caller(channel)
        await caller.create("new", top / "new")
        answers = aiter(caller.scan("new"))
        first = await anext(answers)
        await caller.delete("new")
        rest = [answer async for answer in answers]
    assert len(first.files) < 3000
    assert rest[-1].summary.files == 3000
