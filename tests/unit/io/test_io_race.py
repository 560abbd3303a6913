"""No race of renames lets a read, a parse or a scan out of its root.

A control with the resolver that everybody writes first, which checks and then opens, must escape in
the same arena: so the harness shows each time that it would notice. Red for each of the three when
`Tree` opens the joined path with a plain `os.open` in place of `openat2`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from lodestone.io.v1 import (
    parse_service_pb2,
    parse_service_pb2_grpc,
    scan_service_pb2,
    scan_service_pb2_grpc,
    snippet_service_pb2,
    snippet_service_pb2_grpc,
    tree_pb2,
)
from services.io.content import file_digest
from services.io.errors import PathOutsideTreeError
from services.io.model import SymlinkPolicy
from tests.unit.io.harness import open_tree, serve
from tests.unit.io.racing import CANARY, INSIDE, Arena, exchanging, make_arena

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    import grpc

TREE = tree_pb2.Tree(root="roots/test")
CONTROL_SECONDS = 30.0
ENOUGH = 10
pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("policy", "seconds"),
    [
        (SymlinkPolicy.WITHIN_ROOT, 10.0),
        (SymlinkPolicy.DENY, 3.0),
        (SymlinkPolicy.ACROSS_ROOTS, 3.0),
    ],
)
async def test_nothing_escapes_while_names_are_exchanged(
    tmp_path: Path, policy: SymlinkPolicy, seconds: float
) -> None:
    arena = make_arena(tmp_path)
    until = time.monotonic() + seconds
    seen: Counter[str] = Counter()

    async def repeat(once: Callable[[Any, Counter[str]], Awaitable[None]], channel: Any) -> None:
        while time.monotonic() < until:
            await once(channel, seen)

    async with serve(arena.top, tmp_path / "s", symlink_policy=policy) as channel:
        await parse(channel, Counter())  # the parser has started
        with exchanging(arena):
            await asyncio.gather(
                repeat(read, channel),
                repeat(parse, channel),
                repeat(scan, channel),
                asyncio.to_thread(open_again_and_again, arena, policy, until, seen),
            )

    assert not [name for name in seen if name.endswith("escaped")], seen
    for kind in ("read", "parse", "scan", "open"):
        assert seen[f"{kind} inside"] > ENOUGH, seen
    for kind in ("read", "parse", "open"):
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
