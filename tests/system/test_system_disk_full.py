"""A disk that fills up during a run ends the run in order, and nothing is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from services.runtime.exits import ExitCode
from tests.support.postgres import make_reachable_folder
from tests.support.stack import Lodestone

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_DISK_MIB = 400
_LEFT_MIB = 66


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of its own, of a few hundred MiB; only root may mount one."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    folder = make_reachable_folder()
    size = f"size={_DISK_MIB}m"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], check=True)
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


def test_a_full_disk_cancels_the_run_and_the_next_one_goes_on(
    small_disk: Path, large_tree: Path
) -> None:
    """Red when the room is not watched: PostgreSQL then panics for want of room for its log."""
    product = Lodestone(small_disk / "data").with_settings(EMBED_MODEL="hashing")
    try:
        assert product.run("up").code == 0
        filler = small_disk / "filler"
        with filler.open("wb") as file:
            os.posix_fallocate(
                file.fileno(), 0, shutil.disk_usage(small_disk).free - (_LEFT_MIB << 20)
            )

        full = product.run("index", str(large_tree), "--json")

        assert full.code == ExitCode.DISK_FULL, full.stderr
        assert "is full" in full.stderr.splitlines()[-1]
        assert "goes on where it was" in full.stderr.splitlines()[-1]
        filler.unlink()
        report = product.index(large_tree)
        assert report["state"] == "succeeded"
        assert report["nodes"]["embedded"] + report["nodes"]["reused"] == report["nodes"]["total"]
        assert product.index(large_tree)["forwards"] == 0
    finally:
        assert product.run("down").code == 0
