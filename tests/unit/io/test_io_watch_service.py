"""Watching as callers of the service see it."""

from __future__ import annotations

import asyncio
import base64
import threading
import time
import uuid
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from lodestone.io.v1 import edit_service_pb2, edit_service_pb2_grpc, tree_pb2, watch_service_pb2
from services.io.model import Root, SymlinkPolicy
from services.io.origins import Origins
from services.io.roots import Roots
from services.io.watch.model import EventType, WatchOptions
from services.io.watch.stream import tell
from services.io.watch.watchers import Watchers
from services.runtime.status import read_rpc_error
from tests.unit.io.harness import MakeFiles, serve_app
from tests.unit.io.watch_calls import FILES, QUICK, RESCAN, WAIT_SECONDS, Watch, watching
from tests.unit.io.watching import RULES

if TYPE_CHECKING:
    from pathlib import Path


async def test_the_first_response_comes_at_once_and_all_after_it_is_told(
    make_files: MakeFiles, tmp_path: Path
) -> None:
    """Red when the heartbeat is sent before the watches are in place."""
    files = {f"d{number}/{count}.py": "" for number in range(200) for count in range(10)}
    top = make_files(files | {"z/a.py": "a"})
    async with watching(top, tmp_path) as channel:
        watch = Watch(channel)
        assert await watch.next() == []
        assert watch.token
        (top / "z/n.py").write_text("n")

        assert await watch.some() == [(watch_service_pb2.FileEvent.TYPE_CREATED, "z/n.py")]


async def test_a_quiet_watch_tells_that_it_lives(make_files: MakeFiles, tmp_path: Path) -> None:
    async with watching(make_files(FILES), tmp_path, watch_heartbeat_seconds=0.05) as channel:
        watch = Watch(channel)
        assert [await watch.next() for _ in range(3)] == [[], [], []]


async def test_a_file_that_is_written_all_the_time_is_told_within_the_longest_wait(
    make_files: MakeFiles, tmp_path: Path
) -> None:
    """Red when quiet alone ends a window (`_first_change` left out of `_flush_at`)."""
    top = make_files(FILES)
    stop = threading.Event()

    def write() -> None:
        with (top / "a.py").open("a") as file:
            while not stop.wait(0.002):
                file.write("x")
                file.flush()

    options = {"watch_quiet_seconds": 0.1, "watch_max_wait_seconds": 0.3}
    async with watching(top, tmp_path, **options) as channel:
        watch = Watch(channel)
        await watch.next()
        writer = threading.Thread(target=write)
        writer.start()
        try:
            started = time.monotonic()
            told = [await watch.some() for _ in range(3)]
            seconds = time.monotonic() - started
        finally:
            stop.set()
            writer.join()

    assert told == [[(watch_service_pb2.FileEvent.TYPE_MODIFIED, "a.py")]] * 3
    assert seconds < 5


async def test_a_writer_does_not_hear_its_own_echo(make_files: MakeFiles, tmp_path: Path) -> None:
    """Others hear it with its origin, and who changes the file after it has none.

    Red when no origin is looked up.
    """
    top = make_files(FILES)
    async with serve_app(top, tmp_path / "s", **QUICK) as (channel, app):
        origins: Origins = app._origins
        own, other = Watch(channel, ignore_origin_id="me"), Watch(channel)
        await own.next()
        await other.next()
        (tmp_path / "new").write_text("by me")
        origins.record((tmp_path / "new").stat(), top.stat(), "a.py", "me")
        (tmp_path / "new").replace(top / "a.py")
        message = await asyncio.wait_for(other.call.read(), WAIT_SECONDS)
        assert [(e.path, e.origin_id) for e in message.events] == [("a.py", "me")]
        with (top / "a.py").open("a") as file:
            file.write("by another")
        message = await asyncio.wait_for(own.call.read(), WAIT_SECONDS)

        assert [(e.path, e.origin_id) for e in message.events] == [("a.py", "")]


async def test_a_file_that_the_service_writes_is_told_once_with_its_origin(
    make_files: MakeFiles, tmp_path: Path
) -> None:
    """Red when the writer's temporary file is told, or the origin is noted after the rename."""
    top = make_files(FILES)
    tree = tree_pb2.Tree(root="roots/test")
    async with watching(top, tmp_path) as channel:
        edits: Any = edit_service_pb2_grpc.EditServiceStub(channel)
        own, other = Watch(channel, ignore_origin_id="me"), Watch(channel)
        await own.next()
        await other.next()
        for number in range(5):
            request = edit_service_pb2.CreateFileRequest(
                request_id=str(uuid.uuid4()), tree=tree, path=f"n{number}.py", content=b"new",
                origin_id="me",
            )  # fmt: skip
            await edits.CreateFile(request)
        (top / "last.py").write_text("by another")
        told: list[tuple[str, str]] = []
        while ("last.py", "") not in told:
            message = await asyncio.wait_for(other.call.read(), WAIT_SECONDS)
            told += [(event.path, event.origin_id) for event in message.events]

        assert sorted(told) == [("last.py", ""), *((f"n{number}.py", "me") for number in range(5))]
        assert await own.paths("last.py") == ["last.py"]


async def test_a_watch_resumes_after_the_last_message(
    make_files: MakeFiles, tmp_path: Path
) -> None:
    """Red when the watch of a tree ends with its last caller: the token is a foreign one then."""
    top = make_files(FILES)
    async with watching(top, tmp_path) as channel:
        first = Watch(channel)
        await first.next()
        first.cancel()
        (top / "n.py").write_text("n")
        (top / "a.py").unlink()
        second = Watch(channel, resume_token=first.token)
        told = await second.paths("a.py")

    assert sorted(told) == ["a.py", "n.py"]


async def test_a_token_of_another_life_is_a_rescan(make_files: MakeFiles, tmp_path: Path) -> None:
    """Also a token of another tree. Red when an unknown token starts now, in silence."""
    top = make_files(FILES)
    async with watching(top, tmp_path) as channel:
        old = Watch(channel)
        await old.next()
    async with watching(top, tmp_path) as channel:
        watch = Watch(channel, resume_token=old.token)
        assert await watch.next() == [(RESCAN, "")]
        below = Watch(channel, "sub", resume_token=watch.token)
        assert await below.next() == [(RESCAN, "")]
        (top / "sub/b.py").write_text("new")
        assert [path for _, path in await watch.some()] == ["sub/b.py"]
        assert [path for _, path in await below.some()] == ["b.py"]


async def test_a_token_older_than_the_log_is_a_rescan(
    make_files: MakeFiles, tmp_path: Path
) -> None:
    """Red when a log that forgot events reads on from what it has."""
    top = make_files(FILES)
    async with watching(top, tmp_path, watch_log_events=100) as channel:
        first, steady = Watch(channel), Watch(channel)
        await first.next()
        await steady.next()
        first.cancel()
        for number in range(3):
            for count in range(90):
                (top / f"n{number}-{count}.py").write_text("")
            (top / f"last{number}.py").write_text("")
            await steady.paths(f"last{number}.py")
        again = Watch(channel, resume_token=first.token)

        assert await again.next() == [(RESCAN, "")]
        (top / "a.py").unlink()
        assert [path for _, path in await again.some()] == ["a.py"]


async def test_a_token_is_too_old_after_a_time(make_files: MakeFiles, tmp_path: Path) -> None:
    top = make_files(FILES)
    async with watching(top, tmp_path, watch_log_seconds=0.05) as channel:
        first, steady = Watch(channel), Watch(channel)
        await first.next()
        await steady.next()
        first.cancel()
        (top / "a.py").unlink()
        await steady.paths("a.py")
        events: list[tuple[int, str]] = []
        while events != [(RESCAN, "")]:  # until it was forgotten, it is told again
            again = Watch(channel, resume_token=first.token)
            events = await again.next()
            again.cancel()


@pytest.mark.parametrize(
    "token", ["nonsense!", "AAAA", "A" * 5000, base64.urlsafe_b64encode(bytes(25)).decode(), "é"]
)
async def test_what_is_no_token_is_refused(
    make_files: MakeFiles, tmp_path: Path, token: str
) -> None:
    async with watching(make_files(FILES), tmp_path) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await Watch(channel, resume_token=token).next()
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert read_rpc_error(refused.value).reason == "ERROR_REASON_INVALID_REQUEST"


async def test_a_slow_caller_is_told_to_scan_and_holds_up_nobody(make_files: MakeFiles) -> None:
    """A caller takes nothing while more happens than the log holds; another gets all of it.

    Red when the position of one who fell behind is moved on in silence. The heartbeat is longer
    than any machine is up: the first message once came a heartbeat after the machine's start.
    """
    top = make_files(FILES)
    roots = Roots([Root("test", str(top), SymlinkPolicy.DENY)])
    options = WatchOptions(quiet_seconds=0.02, log_events=100)
    heartbeat_seconds = 1e9
    watchers = Watchers(roots.open_tree, RULES, Origins(), options)
    async with (
        watchers.subscribe("roots/test", "") as one,
        watchers.subscribe("roots/test", "") as two,
        aclosing(tell(one, "", "", heartbeat_seconds)) as slow,
        aclosing(tell(two, "", "", heartbeat_seconds)) as steady,
    ):
        await anext(slow)
        await anext(steady)
        told: list[str] = []
        for number in range(3):
            for count in range(80):
                (top / f"n{number}-{count}.py").write_text("")
            while f"n{number}-79.py" not in told:
                told += [event.path for event in (await anext(steady)).events]
        late = await anext(slow)
        (top / "a.py").unlink()
        after = await anext(slow)
    await watchers.close()

    assert len(set(told)) == 240
    assert [event.type for event in late.events] == [EventType.RESCAN]
    assert [event.path for event in after.events] == ["a.py"]
