"""What a watch does when the kernel cannot tell everything: it says so (fault F16)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from prometheus_client import REGISTRY

from lodestone.io.v1 import tree_pb2, watch_service_pb2, watch_service_pb2_grpc
from services.io.watch.model import EventType, RescanCause
from tests.support.kernel_limits import INSTANCES, WATCHES, with_limit
from tests.unit.io.service_process import running
from tests.unit.io.watching import QUICK, Client, kinds, wait_for, watch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.unit.io.harness import MakeFiles

QUEUE_LIMIT = Path("/proc/sys/fs/inotify/max_queued_events")
BURST = 20_000


def need_a_queue_shorter_than_a_burst() -> None:
    """Skips a test that the kernel's settings make mean nothing."""
    if int(QUEUE_LIMIT.read_text()) > BURST:
        pytest.skip("the kernel's queue holds more than happens here")


def rescans(cause: str) -> float:
    return REGISTRY.get_sample_value("lodestone_io_watch_rescans_total", {"cause": cause}) or 0.0


class Process:
    """A watch in a process of its own that prints what it tells, a line of JSON each."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def line(self) -> list[list[str]]:
        """Returns the next events as types and paths."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the process ended"
        events: list[list[str]] = json.loads(line)
        return events


@contextmanager
def watching_process(top: Path, prefix: Sequence[str] = ()) -> Iterator[Process]:
    command = [*prefix, sys.executable, "-m", "tests.unit.io.watch_process", str(top)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Process(process)
        finally:
            process.send_signal(signal.SIGCONT)
            process.kill()


@pytest.mark.slow
def test_a_queue_that_overflowed_is_a_rescan_and_the_watch_goes_on(make_files: MakeFiles) -> None:
    """The process is stopped while more happens than the kernel's queue holds.

    Red when Q_OVERFLOW is not looked at: 20,000 files are made and some 5,000 told, with no word
    about the others, as watchfiles 1.3 does.
    """
    need_a_queue_shorter_than_a_burst()
    top = make_files({"a.py": "a", "d/b.py": "b"})
    with watching_process(top) as process:
        assert process.line() == []
        process.send(signal.SIGSTOP)
        for number in range(BURST):
            (top / f"d/{number}.py").touch()
        (top / "late/deep").mkdir(parents=True)
        process.send(signal.SIGCONT)
        told: list[list[str]] = []
        while ["TYPE_RESCAN", ""] not in told:
            told += process.line()
        (top / "late/deep/n.py").touch()
        (top / "d/19999.py").unlink()
        after: list[list[str]] = []
        while len(after) < 2:
            after += [event for event in process.line() if event != ["TYPE_RESCAN", ""]]

    assert sorted(after)[-2:] == [
        ["TYPE_CREATED", "late/deep/n.py"], ["TYPE_REMOVED", "d/19999.py"],
    ]  # fmt: skip


@pytest.mark.slow
async def test_the_service_counts_each_overflow_of_the_kernels_queue(
    make_files: MakeFiles, tmp_path: Path
) -> None:
    """The caller is told to scan, and `/metrics` says how often and why; nothing else counts.

    Red when the loop tells of a rescan without counting it.
    """
    need_a_queue_shorter_than_a_burst()
    top = make_files({"a.py": "a"})
    counted = 'lodestone_io_watch_rescans_total{cause="%s"}'
    async with running(top, tmp_path, metrics_listen="127.0.0.1:0") as (service, _):
        async with grpc.aio.insecure_channel(service.address) as channel:
            stub: Any = watch_service_pb2_grpc.WatchServiceStub(channel)
            wanted = watch_service_pb2.WatchTreeRequest(tree=tree_pb2.Tree(root="roots/test"))
            call = stub.WatchTree(wanted, wait_for_ready=True)
            async with asyncio.timeout(60):
                assert not (await call.read()).events
                assert service.metric(counted % "overflow") == 0
                service.process.send_signal(signal.SIGSTOP)
                for _ in range(BURST // 3):  # each is created, closed and removed
                    (top / "b.py").touch()
                    (top / "b.py").unlink()
                service.process.send_signal(signal.SIGCONT)
                told: list[int] = []
                while watch_service_pb2.FileEvent.TYPE_RESCAN not in told:
                    told += [event.type for event in (await call.read()).events]
            call.cancel()
        causes = {cause: service.metric(counted % cause) for cause in RescanCause}

    assert causes == dict.fromkeys(RescanCause, 0.0) | {RescanCause.OVERFLOW: 1.0}


def test_a_queue_of_our_own_that_overflowed_is_a_rescan_and_counted(make_files: MakeFiles) -> None:
    """Red when a full queue drops what comes without a mark in its place."""
    top = make_files({"a.py": "a"})
    before = rescans("overflow")
    with watch(top, options=replace(QUICK, queue_bytes=64)) as watched:
        for number in range(50):
            (top / f"{number}.py").touch()
        assert [event.type for event in watched.events()] == [EventType.RESCAN]
        known = watched.scan()
        client = Client(watched)
        wait_for(lambda: rescans("overflow") > before)

    assert client.known == known


@pytest.mark.slow
def test_a_burst_of_20000_files_is_told_whole_or_as_a_rescan(make_files: MakeFiles) -> None:
    """Whatever the kernel's queue lost, a caller who follows knows what a scan finds."""
    top = make_files({"a.py": "a"})
    with watch(top) as watched:
        client = Client(watched)
        for folder in range(100):
            place = top / f"d{folder}"
            place.mkdir()
            for number in range(BURST // 100):
                (place / f"{number}.py").write_text("x")
        client.catch_up()
        wait_for(lambda: client.take() is not None and len(client.known) == BURST + 1)

        assert client.known == watched.scan()


def test_more_changes_than_are_kept_are_a_rescan(make_files: MakeFiles) -> None:
    top = make_files({"a.py": "a"})
    (top.parent / "many").mkdir()
    for number in range(300):
        (top.parent / f"many/{number}.py").touch()
    with watch(top, options=replace(QUICK, log_events=200)) as watched:
        (top.parent / "many").rename(top / "many")
        assert [event.type for event in watched.events()] == [EventType.RESCAN]
        (top / "many/7.py").unlink()

        assert kinds(watched.events()) == [("removed", "many/7.py")]


@pytest.mark.slow
@pytest.mark.parametrize(("limit_file", "limit"), [(WATCHES, 10), (INSTANCES, 0)])
def test_where_not_all_can_be_watched_callers_are_told_to_scan_again_and_again(
    make_files: MakeFiles, limit_file: str, limit: int
) -> None:
    """Red when ENOSPC of a watch is taken for a folder that cannot be read."""
    top = make_files({f"d{number}/f.py": "" for number in range(30)})
    with watching_process(top, with_limit(limit_file, limit)) as process:
        told = [process.line() for _ in range(3)]

    assert told == [[], [["TYPE_RESCAN", ""]], [["TYPE_RESCAN", ""]]]


@pytest.mark.slow
def test_a_file_system_that_is_unmounted_is_a_rescan(make_files: MakeFiles) -> None:
    """Red when an unmount is nothing: what lay there is neither removed nor told otherwise."""
    top = make_files({"a.py": "a", "m/under.py": "u"})
    if (
        os.geteuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "none", str(top / "m")], check=False, capture_output=True
        ).returncode
    ):
        pytest.skip("mounting is not allowed here")
    is_mounted = True
    try:
        (top / "m/over.py").write_text("o")
        with watch(top) as watched:
            assert set(watched.scan()) == {"a.py", "m/over.py"}
            subprocess.run(["umount", str(top / "m")], check=True)
            is_mounted = False
            assert [event.type for event in watched.events()] == [EventType.RESCAN]
            (top / "m/under.py").write_text("more")

            assert kinds(watched.events()) == [("modified", "m/under.py")]
    finally:
        if is_mounted:
            subprocess.run(["umount", str(top / "m")], check=True)
