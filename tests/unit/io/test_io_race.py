"""No race of renames lets a call out of its root, be it to read, to write or to tell of it.

A control with the resolver that everybody writes first, which checks and then opens, must escape in
the same arena: so the harness shows each time that it would notice. Red when `open_at` is a plain
`os.open` of the path: `seen` then counts what escaped, and what lies outside is changed.
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections import Counter
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from lodestone.io.v1 import (
    edit_service_pb2,
    edit_service_pb2_grpc,
    parse_service_pb2,
    parse_service_pb2_grpc,
    scan_service_pb2,
    scan_service_pb2_grpc,
    snippet_service_pb2,
    snippet_service_pb2_grpc,
    tree_pb2,
    watch_service_pb2,
    watch_service_pb2_grpc,
)
from services.io import beneath
from services.io.content import file_digest
from services.io.errors import PathOutsideTreeError
from services.io.model import SymlinkPolicy
from tests.unit.io.harness import open_tree, serve
from tests.unit.io.racing import CANARY, INSIDE, Arena, exchanging, make_arena

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

TREE = tree_pb2.Tree(root="roots/test")
CONTROL_SECONDS = 30.0
ENOUGH = 10
pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("policy", "seconds", "has_openat2"),
    [
        (SymlinkPolicy.WITHIN_ROOT, 10.0, True),
        (SymlinkPolicy.DENY, 3.0, True),
        (SymlinkPolicy.ACROSS_ROOTS, 3.0, True),
        (SymlinkPolicy.WITHIN_ROOT, 3.0, False),
    ],
)
async def test_nothing_escapes_while_names_are_exchanged(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    policy: SymlinkPolicy,
    seconds: float,
    has_openat2: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    if not has_openat2:  # the parser's processes keep it
        monkeypatch.setattr(beneath, "_SYS_OPENAT2", 100_000)
    arena = make_arena(tmp_path)
    outside = held_outside(arena)
    seen: Counter[str] = Counter()

    def is_enough(kind: str) -> bool:
        ends = ("inside",) if kind == "scan" else ("inside", "refused")
        return all(seen[f"{kind} {end}"] > ENOUGH for end in ends)

    async def repeat(once: Callable[[Any, Counter[str]], Awaitable[None]], channel: Any) -> None:
        kind = once.__name__
        while time.monotonic() < (until if is_enough(kind) else latest):
            await once(channel, seen)

    async with serve(arena.top, tmp_path / "s", symlink_policy=policy) as channel:
        await parse(channel, Counter())  # the parser has started: the time counts from here
        until = time.monotonic() + seconds
        latest = until + CONTROL_SECONDS
        with exchanging(arena):
            await asyncio.gather(
                repeat(read, channel),
                repeat(parse, channel),
                repeat(scan, channel),
                repeat(check, channel),
                repeat(edit, channel),
                repeat(create, channel),
                watch(channel, until, latest, seen),
                asyncio.to_thread(open_again_and_again, arena, policy, until, seen),
            )

    assert not [name for name in seen if name.endswith("escaped")], seen
    assert held_outside(arena) == outside, seen
    assert seen["watch inside"], seen
    for kind in ("read", "parse", "scan", "check", "edit", "create", "open"):
        assert seen[f"{kind} inside"] > ENOUGH, seen
    for kind in ("read", "parse", "check", "edit", "create", "open"):
        assert seen[f"{kind} refused"] > ENOUGH, seen


def test_the_control_that_checks_and_then_opens_escapes(tmp_path: Path) -> None:
    arena = make_arena(tmp_path)
    until = time.monotonic() + CONTROL_SECONDS
    with exchanging(arena):
        while time.monotonic() < until:
            for path in Arena.paths:
                if check_then_open(arena.top, path) == CANARY:
                    return
    pytest.fail("the control did not escape: the harness shows nothing on this machine")


def check_then_open(top: Path, path: str) -> bytes:
    """The planted bug: between the check and the open the path leads elsewhere."""
    joined = os.path.join(top, path)  # noqa: PTH118
    try:
        if not os.path.realpath(joined).startswith(f"{top}/"):
            return b""
        fd = os.open(joined, os.O_RDONLY)
    except OSError:  # exchanged while it was looked at, by either of the two
        return b""
    try:
        return os.read(fd, 1000)
    finally:
        os.close(fd)


def open_again_and_again(
    arena: Arena, policy: SymlinkPolicy, until: float, seen: Counter[str]
) -> None:
    with open_tree(arena.top, policy) as tree:
        while time.monotonic() < until:
            for path in Arena.paths:
                try:
                    fd, _ = tree.open_file(path)
                except PathOutsideTreeError:
                    seen["open refused"] += 1
                    continue
                data = os.read(fd, 1000)
                os.close(fd)
                seen["open inside" if data == INSIDE else "open escaped"] += 1


async def read(channel: grpc.aio.Channel, seen: Counter[str]) -> None:
    """Names both contents: a verified read returns either when it gets at it."""
    stub: Any = snippet_service_pb2_grpc.SnippetServiceStub(channel)
    refs = [
        snippet_service_pb2.SnippetRef(path=path, end_byte=5, file_digest=file_digest(content))
        for path in (*Arena.paths, "folder/only_outside.py")
        for content in (INSIDE, CANARY)
    ]
    answer = await stub.ReadSnippets(snippet_service_pb2.ReadSnippetsRequest(tree=TREE, refs=refs))
    for number, result in enumerate(answer.results):
        if result.WhichOneof("outcome") == "error":
            seen["read refused"] += 1
        else:
            seen["read escaped" if number % 2 else "read inside"] += 1


async def parse(channel: grpc.aio.Channel, seen: Counter[str]) -> None:
    stub: Any = parse_service_pb2_grpc.ParseServiceStub(channel)
    files = [parse_service_pb2.FileToParse(path=path) for path in Arena.paths]
    request = parse_service_pb2.ParseFilesRequest(tree=TREE, files=files)
    async for answer in stub.ParseFiles(request):
        if answer.WhichOneof("outcome") == "error":
            seen["parse refused"] += 1
        else:
            is_inside = answer.parsed.digest == file_digest(INSIDE)
            seen["parse inside" if is_inside else "parse escaped"] += 1


async def scan(channel: grpc.aio.Channel, seen: Counter[str]) -> None:
    """A scan tells names and sizes: those of the file outside differ."""
    stub: Any = scan_service_pb2_grpc.ScanServiceStub(channel)
    async for answer in stub.ScanTree(scan_service_pb2.ScanTreeRequest(tree=TREE)):
        for file in answer.files:
            is_inside = file.signature.size == len(INSIDE) and "only_outside" not in file.path
            seen["scan inside" if is_inside else "scan escaped"] += 1


async def check(channel: grpc.aio.Channel, seen: Counter[str]) -> None:
    """Asks about both contents; the digest that comes back is of the file that was read."""
    stub: Any = scan_service_pb2_grpc.ScanServiceStub(channel)
    files = [
        scan_service_pb2.KnownFile(path=path, digest=file_digest(content))
        for path in Arena.paths
        for content in (INSIDE, CANARY)
    ]
    answer = await stub.CheckFiles(scan_service_pb2.CheckFilesRequest(tree=TREE, files=files))
    for result in answer.results:
        if not result.digest:
            seen["check refused"] += 1
        else:
            is_inside = result.digest == file_digest(INSIDE)
            seen["check inside" if is_inside else "check escaped"] += 1


async def edit(channel: grpc.aio.Channel, seen: Counter[str]) -> None:
    """Edits both contents by themselves; only the one inside may be found.

    Only the file in the folder: a write to `file.py` may meet the link there and replace it, and
    the exchange would go on with two files.
    """
    stub: Any = edit_service_pb2_grpc.EditServiceStub(channel)
    for content, found in ((INSIDE, "inside"), (CANARY, "escaped")):
        ref = snippet_service_pb2.SnippetRef(
            path=Arena.paths[0], end_byte=len(content), file_digest=file_digest(content)
        )
        request = edit_service_pb2.ApplyEditsRequest(
            request_id=str(uuid.uuid4()),
            tree=TREE,
            edits=[edit_service_pb2.Edit(ref=ref, replacement=content)],
        )
        answer = await stub.ApplyEdits(request)
        is_edited = answer.results[0].HasField("edited")
        if is_edited or content == INSIDE:
            seen[f"edit {found}" if is_edited else "edit refused"] += 1


async def create(channel: grpc.aio.Channel, seen: Counter[str]) -> None:
    """Overwrites a file of one name; where it went is told by what lies outside in the end."""
    stub: Any = edit_service_pb2_grpc.EditServiceStub(channel)
    request = edit_service_pb2.CreateFileRequest(
        request_id=str(uuid.uuid4()),
        tree=TREE,
        path="folder/made.py",
        content=INSIDE,
        if_exists=edit_service_pb2.CreateFileRequest.IF_EXISTS_OVERWRITE,
    )
    try:
        await stub.CreateFile(request)
    except grpc.aio.AioRpcError:
        seen["create refused"] += 1
    else:
        seen["create inside"] += 1


async def watch(channel: grpc.aio.Channel, until: float, latest: float, seen: Counter[str]) -> None:
    """A watch tells paths: one lies outside alone."""
    stub: Any = watch_service_pb2_grpc.WatchServiceStub(channel)
    call = stub.WatchTree(watch_service_pb2.WatchTreeRequest(tree=TREE))
    try:
        async with asyncio.timeout(latest - time.monotonic()):
            while time.monotonic() < until or not seen["watch inside"]:
                for event in (await call.read()).events:
                    is_outside = "only_outside" in event.path
                    seen["watch escaped" if is_outside else "watch inside"] += 1
    except TimeoutError:
        pass
    finally:
        call.cancel()


def held_outside(arena: Arena) -> dict[str, bytes]:
    """Returns what lies beside the root, by name."""
    return {path.name: path.read_bytes() for path in (arena.top.parent / "outside").iterdir()}
