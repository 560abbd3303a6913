"""How long an unchanged scan takes beside `find` and `git status` in the same tree.

The tree has 50,000 files in 5,000 folders, two to four levels deep, with some ignore files. `find`
tells size, mtime and path of each file, less than a scan tells, and leaves out `.git`. All take
turns; the ratio of a round is taken within it, and the median of the rounds is told.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lodestone.io.v1 import scan_service_pb2, scan_service_pb2_grpc, tree_pb2
from services.io.ignore import IgnoreRules
from services.io.model import Root, SymlinkPolicy
from services.io.names import NameRules
from services.io.paths import Tree
from services.io.scanner import ScanRules, TreeScan
from services.runtime.channel import connect
from services.runtime.garbage import collect_less
from tests.bench.figures import figure, say

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

FOLDERS = 5000
FILES_PER_FOLDER = 10
FIND_GOAL = 1.5
_ROUNDS = 9
_NAMED_FILES = 20
_STEMS = ("models", "views", "forms", "tests", "admin", "urls", "config", "signals", "client")
_SUFFIXES = (".py",) * 6 + (".js", ".html", ".md", ".txt", ".json", ".css", ".go", ".ts")
_IGNORES = "*.pyc\n__pycache__/\n*.egg-info\n/build\nnode_modules/\n"
_NESTED_IGNORES = "*.log\n*.tmp\ndist/\n!keep.log\n/generated\n"
_FOLDERS_PER_IGNORE_FILE = 250


def measure(scratch: Path) -> dict[str, dict[str, Any]]:
    """Returns the ratios of scans to `find` and `git status`."""
    top = scratch / "tree"
    say(f"a tree of {make_tree(top)} files")
    return asyncio.run(_measure(scratch, top))


def make_tree(top: Path, folders: int = FOLDERS) -> int:
    """Makes the tree, commits it, and returns how many files it has."""
    draw = random.Random(20)
    count = 0
    for number in range(folders):
        folder = top / f"app{number % 20}" / f"part{number % 100}"
        folder = folder / f"leaf{number}" if number % 3 else folder / "deep" / f"leaf{number}"
        folder.mkdir(parents=True)
        if number % _FOLDERS_PER_IGNORE_FILE == 0:
            (folder / ".gitignore").write_text(_NESTED_IGNORES)
            count += 1
        for index in range(FILES_PER_FOLDER):
            name = f"{draw.choice(_STEMS)}_{index}{draw.choice(_SUFFIXES)}"
            (folder / name).write_text(f"value = {number}\n" * draw.randrange(1, 40))
            count += 1
    (top / ".gitignore").write_text(_IGNORES)
    _run(top, "git", "init", "-q")
    # Else the commit leaves a process behind that packs objects while we measure.
    _run(top, "git", "config", "gc.auto", "0")
    _run(top, "git", "config", "maintenance.auto", "false")
    _run(top, "git", "add", "-A")
    identity = ("-c", "user.name=bench", "-c", "user.email=bench@localhost")
    _run(top, "git", *identity, "commit", "-qm", "tree")
    return count + 1


async def _measure(scratch: Path, top: Path) -> dict[str, dict[str, Any]]:
    collect_less()  # as the service does when it has started
    expected = _scan(top)
    named = _named(top)
    times: dict[str, list[float]] = {"scan": [], "named": [], "grpc": [], "find": [], "git": []}
    async with _service(scratch, top) as scan_by_call:
        assert await scan_by_call() == expected
        for _ in range(_ROUNDS):
            times["find"].append(_timed(lambda: _find(top)))
            times["scan"].append(_timed(lambda: _scan(top)))
            times["named"].append(_timed(lambda: _scan(top, named)))
            started = time.perf_counter()
            await scan_by_call()
            times["grpc"].append(time.perf_counter() - started)
            times["git"].append(_timed(lambda: _run(top, "git", "status", "--porcelain")))
    for name, seconds in times.items():
        say(f"  {name}: {statistics.median(seconds) * 1000:.1f} ms")
    to_find = _ratio(times["scan"], times["find"])
    return {
        "scan_to_find": figure(to_find, FIND_GOAL, met=to_find <= FIND_GOAL),
        "scan_to_git_status": figure(_ratio(times["scan"], times["git"])),
        "scan_over_grpc_to_find": figure(_ratio(times["grpc"], times["find"])),
        "scan_over_grpc_to_git_status": figure(_ratio(times["grpc"], times["git"])),
        "scan_of_named_files_to_scan": figure(_ratio(times["named"], times["scan"])),
        "scan_files_per_second": figure(expected / statistics.median(times["scan"])),
    }


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _run(top: Path, *command: str) -> None:
    subprocess.run(command, cwd=top, check=True, stdout=subprocess.DEVNULL)


def _find(top: Path) -> None:
    _run(top, "find", ".", "-path", "./.git", "-prune", "-o", "-printf", "%s %T@ %p\\n")


def _named(top: Path) -> IgnoreRules:
    """Returns patterns that name twenty files, as whoever watches scans for what changed."""
    files = sorted(top.glob("app*/part*/leaf*/*.py"))[::1000][:_NAMED_FILES]
    return IgnoreRules(f"/{file.relative_to(top)}" for file in files)


def _scan(top: Path, include: IgnoreRules | None = None) -> int:
    rules = ScanRules(
        2 << 20, NameRules(), include or IgnoreRules(()), max_plain_text_bytes=256 << 10
    )
    with Tree(Root("bench", str(top), SymlinkPolicy.WITHIN_ROOT)) as tree:
        return sum(len(batch.files) for batch in TreeScan(tree, rules).batches())


@asynccontextmanager
async def _service(scratch: Path, top: Path) -> AsyncIterator[Callable[[], Any]]:
    """Yields a scan by a call to an io service in a process of its own."""
    address = f"unix:{scratch / 'io.sock'}"
    settings = {"LODESTONE_IO_LISTEN": address, "LODESTONE_IO_ROOTS": f"bench={top}"}
    with (scratch / "io.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.io", env=os.environ | settings, stdout=log, stderr=log
        )
    try:
        async with connect(address, service="bench") as channel:
            stub: Any = scan_service_pb2_grpc.ScanServiceStub(channel)
            request = scan_service_pb2.ScanTreeRequest(tree=tree_pb2.Tree(root="roots/bench"))

            async def scan() -> int:
                answers = stub.ScanTree(request, wait_for_ready=True, timeout=60)
                return sum([len(answer.files) async for answer in answers])

            yield scan
    finally:
        process.terminate()
        await process.wait()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        sys.stdout.write(json.dumps(measure(Path(folder))) + "\n")
