"""A disk that fills up during a run ends the run in order, and nothing is lost."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import pytest

from lodestone.indexer.v1.index_run_service_pb2 import IndexRun
from services.cli.indexer import Indexer
from services.runtime.exits import ExitCode
from tests.support.postgres import make_reachable_folder
from tests.support.small_disk import mounted_disk
from tests.support.stack import Lodestone, finish, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from services.cli.processes import ProcessId

_DISK_MIB = 400
_LEFT_MIB = 48
"""Less than a run needs to go on, and enough for PostgreSQL to write down that it was cancelled."""


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of its own, of a few hundred MiB."""
    folder = make_reachable_folder()
    try:
        with mounted_disk(folder, f"{_DISK_MIB}m"):
            folder.chmod(0o755)
            yield folder
    finally:
        folder.rmdir()


def test_a_full_disk_cancels_the_run_and_the_next_one_goes_on(
    small_disk: Path, large_tree: Path
) -> None:
    """Red when the room is not watched: the run waits for its model, and the command with it.

    At the end nothing at all is left, and everything is stopped: red when it ends with the first
    file that cannot be written.
    """
    product = Lodestone(small_disk / "data").with_settings(EMBED_MODEL="hashing")
    try:
        assert product.run("up").code == 0
        with frozen(product.process("embed")):  # a run that cannot end before the disk is full
            command = product.start("index", str(large_tree), "--json")
            wait_until_a_run_goes(product)
            filler = fill(small_disk)
            full = finish(command)

        assert full.code == ExitCode.DISK_FULL, full.stderr
        assert "is full" in full.stderr.splitlines()[-1]
        assert "goes on where it was" in full.stderr.splitlines()[-1]
        filler.unlink()
        report = product.index(large_tree)
        assert report["state"] == "succeeded"
        assert report["nodes"]["embedded"] + report["nodes"]["reused"] == report["nodes"]["total"]
        assert product.index(large_tree)["forwards"] == 0
        fill(small_disk, 0)
        stopped = product.run("down", "--json")
        assert stopped.code == 0, stopped.stderr
        assert stopped.json["stopped"] == ["indexer", "embed", "io", "postgres"]
    finally:
        assert product.run("down").code == 0


@contextmanager
def frozen(process: ProcessId) -> Iterator[None]:
    """Stops a process by SIGSTOP while the body runs."""
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


def wait_until_a_run_goes(product: Lodestone) -> None:
    """Returns once an indexer works on a run."""
    with closing(Indexer(product.state.processes["indexer"].address)) as indexer:

        def goes() -> bool:
            runs = indexer.list_runs("workspaces/-", 1)
            return bool(runs) and runs[0].state == IndexRun.STATE_RUNNING

        wait_until(goes, 30, "a run goes")


def fill(disk: Path, left_mib: int = _LEFT_MIB) -> Path:
    """Takes nearly all the room of a disk, or all of it; returns the file that holds it."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        while True:
            free = shutil.disk_usage(disk).free
            try:
                os.posix_fallocate(file.fileno(), 0, free - (left_mib << 20))
            except OSError as error:  # others took some of it meanwhile
                if error.errno != errno.ENOSPC:
                    raise
            else:
                return filler
