"""Writes of several processes, killed processes and full disks."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import subprocess
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import pytest
from blake3 import blake3

from services.io.changes import NewFile
from services.io.errors import DiskFullError
from tests.support.small_disk import mounted_disk
from tests.unit.io.racing_writes import append_lines, create_files
from tests.unit.io.service_process import answer_of, edits_of, new_files, running
from tests.unit.io.writing import (
    eventually,
    failed,
    opened_writer,
    replacing,
    request,
    temporary_files,
    written,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.unit.io.harness import MakeFiles

pytestmark = pytest.mark.slow

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.unit.io.injected_write", "tests.unit.io.racing_writes"])
_WAIT_SECONDS = 60
LINES = 60
FILES = 200


def race(work: Callable[..., None], top: Path, state: Path | str) -> None:
    """Runs three processes that begin at once; all must end well."""
    pairs = [_CONTEXT.Pipe() for _ in range(3)]
    processes = [
        _CONTEXT.Process(target=work, args=(theirs, str(top), str(state), name, LINES))
        for name, (_, theirs) in zip("abc", pairs, strict=True)
    ]
    for process in processes:
        process.start()
    for ours, _ in pairs:
        ours.send("go")
    for process in processes:
        process.join(_WAIT_SECONDS)
        process.kill()
    for ours, theirs in pairs:
        ours.close()
        theirs.close()
    assert [process.exitcode for process in processes] == [0, 0, 0]


@pytest.mark.parametrize("kept", ["on disk", "in memory"])
def test_of_edits_by_three_processes_none_is_lost(
    make_files: MakeFiles, tmp_path: Path, kept: str
) -> None:
    """Red without the file's lock and the check before the rename: lines are lost."""
    top = make_files({"log": ""})
    race(append_lines, top, tmp_path / "state" if kept == "on disk" else "")
    lines = (top / "log").read_text().splitlines()
    for name in "abc":
        mine = [line for line in lines if line.startswith(name)]
        assert mine == [f"{name} {number}" for number in range(LINES)]
    assert len(lines) == 3 * LINES
    assert not temporary_files(top)


def test_of_creations_by_three_processes_one_wins_each_file(
    make_files: MakeFiles, tmp_path: Path
) -> None:
    top = make_files({"x": ""})
    race(create_files, top, tmp_path / "state")
    won = {name: (top / f"won-{name}").read_text().splitlines() for name in "abc"}
    assert sum(map(len, won.values())) == LINES
    for name, paths in won.items():
        assert all((top / path).read_text() == name for path in paths)


async def test_a_call_whose_server_was_killed_is_completed_by_its_repetition(
    make_files: MakeFiles, tmp_path: Path
) -> None:
    """Red without a journal on disk: the files that were done come back as changed."""
    names = [f"d{i % 7}/f{i}" for i in range(FILES)]
    top = make_files(dict.fromkeys(names, "old"))
    asked = edits_of(names)
    async with running(top, tmp_path) as (service, stub):
        call = asyncio.create_task(answer_of(stub, asked))
        # One file is looked at, not all: on a busy machine the others would be done meanwhile.
        await eventually(lambda: (top / names[FILES // 8]).read_text() == "new")
        service.process.kill()
        service.process.wait()
        call.cancel()
        await asyncio.wait((call,))
    assert new_files(top, names) < FILES
    async with running(top, tmp_path) as (_, stub):
        await eventually(lambda: not temporary_files(top))  # by the start alone
        answer = await answer_of(stub, asked)
    assert [r.path for r in answer.results] == names
    assert {r.edited.digest for r in answer.results} == {blake3(b"new").digest()}
    assert new_files(top, names) == FILES


async def test_a_server_that_is_told_to_stop_finishes_the_writes_in_flight(
    make_files: MakeFiles, tmp_path: Path
) -> None:
    """Red when the stop cancels calls: the answer is lost, and files are half of each kind."""
    names = [f"f{i}" for i in range(FILES)]
    top = make_files(dict.fromkeys(names, "old"))
    async with running(top, tmp_path) as (service, stub):
        call = asyncio.create_task(answer_of(stub, edits_of(names)))
        await eventually(lambda: new_files(top, names) > 0)
        service.process.send_signal(signal.SIGTERM)
        answer = await call
        assert await asyncio.to_thread(service.process.wait, _WAIT_SECONDS) == 0
    assert all(result.HasField("edited") for result in answer.results)
    assert new_files(top, names) == FILES
    assert not temporary_files(top)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of one MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    with ExitStack() as disks:
        try:
            disks.enter_context(mounted_disk(folder, "1m"))
        except subprocess.CalledProcessError:
            pytest.skip("mounting is not allowed here")
        yield folder


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)) == 4096:
            pass
    assert os.statvfs(disk).f_bfree == 0
    return filler


@pytest.mark.parametrize("full", ["tree", "state"])
async def test_a_full_disk_is_told_and_the_same_request_succeeds_once_there_is_room(
    small_disk: Path, tmp_path: Path, full: str
) -> None:
    """Red when the temporary file stays: the disk stays full of it."""
    places = {"tree": tmp_path / "tree", "state": tmp_path / "state", full: small_disk / full}
    top = places["tree"]
    top.mkdir()
    (top / "a").write_bytes(b"old")
    asked = request(replacing("a", b"old", b"x" * 50_000), NewFile("b", b"x" * 50_000))
    filler = fill(small_disk)
    async with opened_writer(top, places["state"]) as writer:
        if full == "tree":
            for outcome in await writer.write(asked):
                failed(outcome, DiskFullError)
        else:
            with pytest.raises(DiskFullError):
                await writer.write(asked)
        assert (top / "a").read_bytes() == b"old"
        assert {path.name for path in top.iterdir()} - {"filler"} == {"a"}
        filler.unlink()
        for outcome in await writer.write(asked):
            written(outcome)
    assert (top / "a").stat().st_size == (top / "b").stat().st_size == 50_000
