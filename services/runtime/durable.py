"""Waits until files, and names in folders, are on the disk."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def flush_file(path: Path) -> None:
    """Returns when what a file holds outlasts the machine.

    Raises:
        OSError: as the operating system says; it may not be on the disk.
    """
    _flush(path, os.O_RDONLY)


def flush_folder(path: Path) -> None:
    """Returns when the names in a folder outlast the machine: renames in it are done then.

    Raises:
        OSError: as the operating system says; they may not be on the disk.
    """
    _flush(path, os.O_RDONLY | os.O_DIRECTORY)


def _flush(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
