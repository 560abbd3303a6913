"""What is looked at before anything starts: room on the disk, and how long a start may take."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from services.runtime.exits import ExitCode, StartError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

START_TIMEOUT_VARIABLE = "LODESTONE_START_TIMEOUT_SECONDS"
FREE_BYTES_NEEDED = 200 << 20
FREE_BYTES_TO_GO_ON = 64 << 20
_DEFAULT_START_TIMEOUT_SECONDS = 180.0


def start_timeout(environment: Mapping[str, str]) -> float:
    """Returns how long a start may take.

    Raises:
        StartError: the setting is not a number of seconds between 1 and 3600.
    """
    text = environment.get(START_TIMEOUT_VARIABLE, str(_DEFAULT_START_TIMEOUT_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 3600:
        raise StartError(
            ExitCode.USAGE, f"{START_TIMEOUT_VARIABLE}={text}: write seconds from 1 to 3600."
        )
    return seconds


def free_bytes(root: Path) -> int:
    """Returns the free space where a folder is, or will be."""
    existing = next(folder for folder in (root, *root.parents) if folder.exists())
    return shutil.disk_usage(existing).free


def disk_full(root: Path, hint: str) -> StartError:
    """Returns the error of a disk that filled up during work."""
    return StartError(
        ExitCode.DISK_FULL,
        f"The disk of {root} is full: {free_bytes(root) >> 20} MiB are left. Free some. {hint}",
    )


def check_space(root: Path) -> None:
    """Raises StartError when the disk of the data folder is nearly full."""
    free = free_bytes(root)
    if free < FREE_BYTES_NEEDED:
        raise StartError(
            ExitCode.DISK_FULL,
            f"Only {free >> 20} MiB are free on the disk of {root}, and {FREE_BYTES_NEEDED >> 20} "
            "are needed to start: free some, or name a folder on another disk with --data-dir.",
        )
