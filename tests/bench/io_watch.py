"""How soon a change is told over gRPC, and what it costs to know what changed, against a scan."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lodestone.io.v1 import (
    scan_service_pb2,
    scan_service_pb2_grpc,
    tree_pb2,
    watch_service_pb2,
    watch_service_pb2_grpc,
)
from services.runtime.channel import connect
from tests.bench.figures import figure, say

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import grpc

FOLDERS, FILES_PER_FOLDER = 500, 100
FEW_FOLDERS = 50
"""Folders of the tree that tells whether what a change costs depends on the tree."""
EDITS = 100
CHANGED = 20
MANY_CHANGED = 200
ROUNDS = 15
"""Twenty changes are told in one piece or in two, which takes twice as long: few rounds tell
little."""
LATENCY_GOAL_SECONDS = 0.1
"""Twice the quiet that the settings ask for by default."""
SCAN_GOAL = 0.25
"""Most of a scan's time that 20 changes of 50,000 files may take with the shortest quiet."""
TREE_GOAL = 1.5
"""Most that as many changes may take in a tree of ten times the files."""

_QUICK = {"LODESTONE_IO_WATCH_QUIET_SECONDS": "0.001"}
_TREE = tree_pb2.Tree(root="roots/bench")
_WAIT_SECONDS = 60


def measure(scratch: Path) -> dict[str, dict[str, Any]]:
    """Returns the figures; `scratch` is an empty folder."""
    return asyncio.run(_measure(scratch))


async def _measure(scratch: Path) -> dict[str, dict[str, Any]]:
    top, few = scratch / "tree", scratch / "few"
    _make(top, FOLDERS)
    _make(few, FEW_FOLDERS)
    async with service(scratch / "default", top, {}) as (channel, _):
        started = time.perf_counter()
        watch = await open_watch(channel)
        set_up = time.perf_counter() - started
        default = [await _edit(watch, top, number) for number in range(EDITS)]
    async with (
        service(scratch / "quick", top, _QUICK) as (channel, _),
        service(scratch / "quick-few", few, _QUICK) as (few_channel, _),
    ):
        watch, few_watch = await open_watch(channel), await open_watch(few_channel)
        quick = [await _edit(watch, top, number) for number in range(EDITS)]
        scans, changes, of_few, many = [], [], [], []
        for number in range(ROUNDS):
            scans.append(await _scan(channel))
            if number % 2:
                of_few.append(await _change_some(few_watch, few, number, folders=FEW_FOLDERS))
            changes.append(await _change_some(watch, top, number))
            if number % 2 == 0:
                of_few.append(await _change_some(few_watch, few, number, folders=FEW_FOLDERS))
            many.append(await _change_some(watch, top, number, count=MANY_CHANGED))
            say(
                f"scan {scans[-1]:.3f} s, {CHANGED} changes {changes[-1]:.4f} s, of few files "
                f"{of_few[-1]:.4f} s, {MANY_CHANGED} changes {many[-1]:.4f} s"
            )
    to_few = statistics.median(changes) / statistics.median(of_few)
    to_many = statistics.median(a / b for a, b in zip(many, changes, strict=True))
    p50, p99 = statistics.median(default), _p99(default)
    to_scan = statistics.median(a / b for a, b in zip(changes, scans, strict=True))
    return {
        "edit_to_event_seconds_p50": figure(
            p50, LATENCY_GOAL_SECONDS, met=p50 <= LATENCY_GOAL_SECONDS
        ),
        "edit_to_event_seconds_p99": figure(p99),
        "edit_to_event_shortest_quiet_seconds_p50": figure(statistics.median(quick)),
        "edit_to_event_shortest_quiet_seconds_p99": figure(_p99(quick)),
        "changes_to_scan": figure(to_scan, SCAN_GOAL, met=to_scan <= SCAN_GOAL),
        "changes_of_50000_files_to_5000": figure(to_few, TREE_GOAL, met=to_few <= TREE_GOAL),
        "200_changes_to_20": figure(to_many),
        "set_up_to_scan": figure(set_up / statistics.median(scans)),
    }


def _p99(seconds: list[float]) -> float:
    return sorted(seconds)[int(len(seconds) * 0.99) - 1]


def _make(top: Path, folders: int) -> None:
    say(f"making {folders * FILES_PER_FOLDER} files")
    for folder in range(folders):
        place = top / f"d{folder % 20}" / f"e{folder}"
        place.mkdir(parents=True)
        for number in range(FILES_PER_FOLDER):
            (place / f"f{number}.py").write_text(f"x = {number}\n")


def _place(top: Path, number: int, folders: int = FOLDERS) -> Path:
    folder = number * 7 % folders
    return top / f"d{folder % 20}" / f"e{folder}" / f"f{number % FILES_PER_FOLDER}.py"


async def open_watch(channel: grpc.aio.Channel) -> Any:
    """Returns a watch that has begun."""
    stub: Any = watch_service_pb2_grpc.WatchServiceStub(channel)
    request = watch_service_pb2.WatchTreeRequest(tree=_TREE)
    call = stub.WatchTree(request, wait_for_ready=True)
    await asyncio.wait_for(call.read(), _WAIT_SECONDS)
    return call


async def _edit(watch: Any, top: Path, number: int) -> float:
    """Writes a file and returns the seconds until that was told."""
    place = _place(top, number)
    started = time.perf_counter()
    place.write_text(f"edited = {number}\n")
    await hear(watch, {str(place.relative_to(top))})
    return time.perf_counter() - started


async def _change_some(
    watch: Any, top: Path, number: int, *, count: int = CHANGED, folders: int = FOLDERS
) -> float:
    places = [_place(top, number * count + each, folders) for each in range(count)]
    started = time.perf_counter()
    for place in places:
        place.write_text(f"changed = {number}\n")
    await hear(watch, {str(place.relative_to(top)) for place in places})
    return time.perf_counter() - started


async def hear(watch: Any, paths: set[str]) -> None:
    """Reads until all these paths were told."""
    while paths:
        message = await asyncio.wait_for(watch.read(), _WAIT_SECONDS)
        paths -= {event.path for event in message.events}


async def _scan(channel: grpc.aio.Channel) -> float:
    stub: Any = scan_service_pb2_grpc.ScanServiceStub(channel)
    started = time.perf_counter()
    answers = stub.ScanTree(scan_service_pb2.ScanTreeRequest(tree=_TREE))
    found = sum([len(answer.files) async for answer in answers])
    assert found == FOLDERS * FILES_PER_FOLDER, found
    return time.perf_counter() - started


@asynccontextmanager
async def service(
    scratch: Path, top: Path, settings: dict[str, str]
) -> AsyncIterator[tuple[grpc.aio.Channel, int]]:
    """Yields a channel to an io service in a process of its own, and the id of that."""
    scratch.mkdir()  # noqa: ASYNC240 - nothing else runs here
    address = f"unix:{scratch / 'io.sock'}"
    own = {"LODESTONE_IO_LISTEN": address, "LODESTONE_IO_ROOTS": f"bench={top}", **settings}
    with (scratch / "io.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.io", env=os.environ | own, stdout=log, stderr=log
        )
    try:
        async with connect(address, service="bench") as channel:
            yield channel, process.pid
    finally:
        process.terminate()
        await process.wait()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        sys.stdout.write(json.dumps(measure(Path(folder))) + "\n")
