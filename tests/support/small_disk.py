"""A file system of its own and of little room, for disks that are full."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def mounted_disk(folder: Path, size: str, *, lazily: bool = False) -> Iterator[Path]:
    """Mounts a tmpfs of `size`, as mount(8) writes it, on an empty folder; only root may.

    Args:
        folder: where it is mounted; it stays when the disk is gone.
        size: e.g. `16k` or `400m`.
        lazily: whether something may still have a file open at the end.

    Raises:
        CalledProcessError: mounting is not allowed.
    """
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    subprocess.run(command, check=True)
    try:
        yield folder
    finally:
        options = ["--lazy"] if lazily else []
        subprocess.run(["umount", *options, str(folder)], check=True)
