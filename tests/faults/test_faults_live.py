"""F16 and F1 for a live workspace: whoever dies and whatever is lost, the index follows the disk.

The look through the whole tree that time brings is minutes away: what these tests wait for comes
from events, or from a look that a fault asks for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.faults.cluster import Caller, Cluster, caller, fetch, make_cluster
from tests.faults.trees import Editor, write_generated
from tests.faults.truth import check_truth, count_of
from tests.support.kernel_limits import WATCHES, with_limit
from tests.support.live import caught_up

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.faults.members import Member

_LEASE_SECONDS = 1.0
_CATCH_UP_SECONDS = 40.0
_OVERFLOWING_WRITES = 20_000
"""More events than the kernel's queue of 16,384 holds."""


@pytest.fixture(scope="module")
def shared_cluster(folder: Path, roots: Path, urls: tuple[str, str]) -> Iterator[Cluster]:
    """Two indexers with short leases of their watches."""
    settings = {"INDEXER_LIVE_LEASE_SECONDS": str(_LEASE_SECONDS)}
    cluster = make_cluster(folder, roots, *urls, indexer=settings)
    cluster.start()
    yield cluster
    cluster.kill()


@contextlib.asynccontextmanager
async def _live(cluster: Cluster, name: str) -> AsyncIterator[tuple[Caller, Path]]:
    """Yields a caller, and the folder of a workspace that is live and has caught up."""
    tree = write_generated(cluster.roots / name, name, files=12, functions=4)
    async with caller(cluster) as calls:
        await calls.create(name, name)
        await calls.set_live(name)
        await caught_up(cluster.url, name, tree)
        yield calls, tree
        await calls.set_live(name, live=False)
    await check_truth(cluster, name, name)


async def _fence(cluster: Cluster, name: str) -> int:
    return await count_of(
        cluster,
        "SELECT fence FROM workspace_watches h JOIN workspaces w ON w.id = h.workspace_id "
        f"WHERE w.name = '{name}'",
    )


async def _holder(cluster: Cluster, name: str) -> tuple[Member, int]:
    """Returns the indexer that watches, and its fence."""
    fence = await _fence(cluster, name)
    for member in cluster.indexers:
        for line in member.log.splitlines():
            if '"watch_began"' in line and json.loads(line)["fence"] == fence:
                return member, fence
    raise AssertionError(f"nobody watches under fence {fence}")


async def _wait_for_another(cluster: Cluster, name: str, fence: int) -> float:
    """Returns the moment at which somebody else watches."""
    deadline = time.monotonic() + 15
    while await _fence(cluster, name) <= fence:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    return time.monotonic()


async def _edit(tree: Path, seed: str, steps: int) -> None:
    editor = Editor(tree, seed)
    for _ in range(steps):
        editor.step()
        await asyncio.sleep(0.02)


async def test_the_watcher_is_killed_again_and_again(cluster: Cluster) -> None:
    """Another replica watches within lease + 1 s, and no change is lost in between.

    Red on a planted bug: a successor that begins to watch now, without the token of the dead one
    and without a look through the tree.
    """
    name = "live-killed"
    async with _live(cluster, name) as (_, tree):
        for number in range(2):
            member, fence = await _holder(cluster, name)
            edits = asyncio.create_task(_edit(tree, f"{name}-{number}", 30))
            await asyncio.sleep(0.2)
            member.kill()
            killed_at = time.monotonic()
            taken_at = await _wait_for_another(cluster, name, fence)
            assert taken_at - killed_at < _LEASE_SECONDS + 1
            await edits
            await asyncio.to_thread(member.start)
        await caught_up(cluster.url, name, tree, _CATCH_UP_SECONDS)


async def test_a_frozen_watcher_is_replaced_and_does_no_harm_when_it_wakes(
    cluster: Cluster,
) -> None:
    name = "live-frozen"
    async with _live(cluster, name) as (_, tree):
        member, fence = await _holder(cluster, name)
        member.signal(signal.SIGSTOP)
        edits = asyncio.create_task(_edit(tree, name, 30))
        await _wait_for_another(cluster, name, fence)
        member.signal(signal.SIGCONT)
        await edits
        await caught_up(cluster.url, name, tree, _CATCH_UP_SECONDS)
        assert await _fence(cluster, name) == (await _holder(cluster, name))[1]


async def test_io_is_killed_while_files_change(cluster: Cluster) -> None:
    """Red when the watch of the new io goes on without a look through the tree."""
    name = "live-io-killed"
    async with _live(cluster, name) as (_, tree):
        edits = asyncio.create_task(_edit(tree, name, 40))
        await asyncio.sleep(0.2)
        cluster.io.kill()
        await asyncio.sleep(0.3)
        await asyncio.to_thread(cluster.io.start)
        await edits
        await caught_up(cluster.url, name, tree, _CATCH_UP_SECONDS)


async def test_a_queue_of_the_kernel_that_overflows_loses_nothing(cluster: Cluster) -> None:
    """F16: io stands still, the kernel drops events, and with them what happened last.

    Red when a rescan is passed over: the files that went and came at the end are in no event.
    """
    name = "live-overflow"

    def write_more_than_the_queue_holds(tree: Path) -> None:
        busy = [tree / "busy_0.py", tree / "busy_1.py"]
        for number in range(_OVERFLOWING_WRITES):
            os.close(os.open(busy[number % 2], os.O_WRONLY | os.O_CREAT))  # as one that wrote
        (tree / "package_0" / "part_0000.py").unlink()
        (tree / "package_1").rename(tree / "package_9")
        (tree / "last.py").write_text("def last():\n    return 1\n", encoding="utf-8")

    async with _live(cluster, name) as (_, tree):
        before = await _looks(cluster, name)
        cluster.io.signal(signal.SIGSTOP)
        try:
            await asyncio.to_thread(write_more_than_the_queue_holds, tree)
        finally:
            cluster.io.signal(signal.SIGCONT)
        await caught_up(cluster.url, name, tree, _CATCH_UP_SECONDS)
        assert await _looks(cluster, name) > before


async def test_where_not_all_folders_can_be_watched_the_index_follows_the_disk(
    cluster: Cluster,
) -> None:
    """F16: fewer watches than folders, so that most of the tree tells nothing of itself.

    Red when a folder without a watch is no reason to look again.
    """
    name = "live-few-watches"
    io = cluster.io
    settings = io.settings
    io.kill()
    io.prefix = with_limit(WATCHES, 10)
    io.settings = {**settings, "IO_WATCH_RESCAN_SECONDS": "1"}
    try:
        await asyncio.to_thread(io.start)
        for number in range(40):
            folder = cluster.roots / name / f"folder_{number}"
            folder.mkdir(parents=True)
            (folder / "part.py").write_text(f"def part_{number}():\n    return 1\n", "utf-8")
        async with _live(cluster, name) as (_, tree):
            for number in range(0, 40, 3):
                part = tree / f"folder_{number}" / "part.py"
                part.write_text(f"def edited_{number}():\n    return 2\n", "utf-8")
            (tree / "folder_1").rename(tree / "folder_99")
            (tree / "folder_2" / "part.py").unlink()
            await caught_up(cluster.url, name, tree, _CATCH_UP_SECONDS)
    finally:
        io.kill()
        io.prefix, io.settings = (), settings
        await asyncio.to_thread(io.start)


async def _looks(cluster: Cluster, name: str) -> int:
    rows = await fetch(
        cluster.url,
        "SELECT count(*) FROM runs r JOIN workspaces w ON w.id = r.workspace_id "
        "WHERE w.name = $1 AND r.trigger = 'reconcile'",
        name,
    )
    return int(rows[0][0])
