"""Watches that may not begin, end or are left, as callers of the service see it."""

from __future__ import annotations

import asyncio
import shutil
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest

from lodestone.io.v1 import root_service_pb2, root_service_pb2_grpc
from services.runtime.status import read_rpc_error
from tests.unit.io.harness import MakeFiles, serve_app
from tests.unit.io.watch_calls import (
    FILES,
    QUICK,
    RESCAN,
    WAIT_SECONDS,
    Watch,
    wait_until,
    watching,
)


async def test_watches_beyond_the_limits_are_refused_and_places_come_free(
    make_files: MakeFiles, tmp_path: Path
) -> None:
    top = make_files(FILES | {"other/c.py": "c"})
    async with watching(top, tmp_path, watch_max_streams=2, watch_max_trees=1) as channel:
        first = Watch(channel)
        await first.next()
        for directory in ("sub", "other"):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await Watch(channel, directory).next()
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert read_rpc_error(refused.value).reason == "ERROR_REASON_OVERLOADED"
        second = Watch(channel)
        await second.next()
        with pytest.raises(grpc.aio.AioRpcError):
            await Watch(channel).next()
        first.cancel()
        second.cancel()
        code = grpc.StatusCode.RESOURCE_EXHAUSTED
        while code is grpc.StatusCode.RESOURCE_EXHAUSTED:  # the server hears of it a little later
            third = Watch(channel, "sub")
            try:
                await third.next()
                break
            except grpc.aio.AioRpcError as error:
                code = error.code()


@pytest.mark.parametrize("how", ["removed", "moved", "replaced", "folder above moved"])
async def test_a_tree_that_is_gone_ends_its_watches(
    make_files: MakeFiles, tmp_path: Path, how: str
) -> None:
    """Red when it is not asked whether the path still leads to the folder that is watched."""
    top = make_files({"up/t/a.py": "a"})
    async with watching(top, tmp_path) as channel:
        watch = Watch(channel, "up/t")
        await watch.next()
        if how == "folder above moved":
            (top / "up").rename(top / "down")
        elif how == "removed":
            shutil.rmtree(top / "up/t")
        else:
            (top / "up/t").rename(top / "moved")
        if how == "replaced":
            (top / "up/t").mkdir()
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await watch.paths("never told")
        assert ended.value.code() is grpc.StatusCode.NOT_FOUND
        assert read_rpc_error(ended.value).reason == "ERROR_REASON_FILE_NOT_FOUND"
        assert str(top) not in str(ended.value)
        if how == "replaced":
            again = Watch(channel, "up/t", resume_token=watch.token)
            assert await again.next() == [(RESCAN, "")]


async def test_a_root_that_is_removed_ends_its_watches(
    make_files: MakeFiles, tmp_path: Path
) -> None:
    """Also when nothing happens in it."""
    top = make_files({"added/a.py": "a"})
    async with watching(top, tmp_path, root_parents=str(top)) as channel:
        roots: Any = root_service_pb2_grpc.RootServiceStub(channel)
        root = root_service_pb2.Root(
            path=str(top / "added"), symlink_policy=root_service_pb2.SYMLINK_POLICY_DENY
        )
        await roots.CreateRoot(root_service_pb2.CreateRootRequest(root_id="added", root=root))
        watch = Watch(channel, root="roots/added")
        await watch.next()
        await roots.DeleteRoot(root_service_pb2.DeleteRootRequest(name="roots/added"))
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await watch.paths("never told")
    assert ended.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("directory", ["none", "../up", "/etc", "a.py"])
async def test_what_is_no_folder_of_the_root_is_not_watched(
    make_files: MakeFiles, tmp_path: Path, directory: str
) -> None:
    async with watching(make_files(FILES), tmp_path) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await Watch(channel, directory).next()
    assert refused.value.code() in {
        grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT,
    }  # fmt: skip


async def test_watches_end_at_once_when_the_server_drains(
    make_files: MakeFiles, tmp_path: Path
) -> None:
    """Red when drain leaves them: they hold the server's stop for all of its grace."""
    top = make_files(FILES)
    async with serve_app(top, tmp_path / "s", **QUICK) as (channel, app):
        watches = [Watch(channel), Watch(channel, "sub")]
        for watch in watches:
            await watch.next()
        await app.drain()
        for watch in watches:
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await watch.next()
            assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
            assert read_rpc_error(ended.value).reason == "ERROR_REASON_SHUTTING_DOWN"
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await Watch(channel).next()
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def watch_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("io-watch")]


async def test_nothing_is_left_of_watches_that_were_cancelled(
    make_files: MakeFiles, tmp_path: Path
) -> None:
    """Red when a source keeps its pipe, and when a watch that nobody uses stays."""
    top = make_files(FILES)
    async with watching(top, tmp_path, watch_grace_seconds=0) as channel:
        await asyncio.wait_for(channel.channel_ready(), WAIT_SECONDS)
        warm = Watch(channel)
        await warm.next()
        warm.cancel()
        await wait_until(lambda: not watch_threads())
        before = open_descriptors()
        for number in range(20):
            watch = Watch(channel, ("", "sub")[number % 2])
            if number % 3:  # some are cancelled while they are set up
                await watch.next()
            watch.cancel()
        await wait_until(lambda: not watch_threads())
        await wait_until(lambda: open_descriptors() <= before)


async def test_callers_of_one_tree_share_one_watch(make_files: MakeFiles, tmp_path: Path) -> None:
    async with watching(make_files(FILES), tmp_path) as channel:
        watches = [Watch(channel) for _ in range(5)]
        for watch in watches:
            await watch.next()
        assert sorted(watch_threads()) == ["io-watch", "io-watch-read"]
