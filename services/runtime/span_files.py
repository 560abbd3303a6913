"""Spans in files: one line of OTLP/JSON a batch, in a folder that stays bounded."""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

SUFFIX = ".jsonl"
FILES = 4
"""Files of each process's name that are kept; the oldest goes when a new one begins."""

TRACES_FOLDER = "LODESTONE_TRACES_FOLDER"
DEFAULT_BYTES = 32 << 20
"""Bytes of all files of one name."""


class SpanFiles:
    """Appends lines to the newest file of a name, and begins another one when it is full.

    Several processes may write under one name: each line is one write to the end of a file, and no
    file is ever renamed. One that another process has removed meanwhile is noticed.
    """

    def __init__(self, folder: Path, name: str, most_bytes: int = DEFAULT_BYTES) -> None:
        self._folder = folder
        self._name = name
        self._file_bytes = max(1, most_bytes // FILES)
        self._descriptor: int | None = None
        self._torn = False

    def append(self, line: bytes) -> None:
        """Writes a line, given without its end. Raises OSError, and may be called again."""
        if self._descriptor is None or not _has_room(self._descriptor, self._room_for(line)):
            self._open(self._room_for(line))
        assert self._descriptor is not None
        # What a full disk or a killed process cut off is ended, and read as no span.
        data = b"\n" * self._torn + line + b"\n"
        self._torn = True
        if os.write(self._descriptor, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._torn = False

    def close(self) -> None:
        """Closes the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _room_for(self, line: bytes) -> int:
        """Returns how large the file may be for this line to be added."""
        return self._file_bytes - len(line) - 2

    def _open(self, most_bytes: int) -> None:
        """Opens the newest file if it has room, else a new one; removes the oldest."""
        self.close()
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        kept = span_files(self._folder, self._name)
        flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        if kept and kept[-1].stat().st_size <= most_bytes:
            self._descriptor = os.open(kept[-1], flags)
            self._torn = not _ends_a_line(self._descriptor)
            return
        newest = _time_of(kept[-1]) if kept else 0
        number = max(time.time_ns(), newest + 1)  # the clock may have been set back
        path = self._folder / f"{self._name}-{number:020d}-{os.getpid()}{SUFFIX}"
        self._descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
        self._torn = False
        for old in kept[: max(0, len(kept) + 1 - FILES)]:
            old.unlink(missing_ok=True)


def span_files(folder: Path, name: str = "*") -> list[Path]:
    """Returns the files of a name, or of all, oldest first."""
    return sorted(folder.glob(f"{name}-*-*{SUFFIX}"), key=_time_of)


def _time_of(path: Path) -> int:
    digits = path.stem.split("-")[-2]
    return int(digits) if digits.isdecimal() else 0


def _has_room(descriptor: int, most_bytes: int) -> bool:
    """Tells whether the file is still there and may grow; an empty one takes any line."""
    found = os.fstat(descriptor)
    return found.st_nlink > 0 and found.st_size <= max(0, most_bytes)


def _ends_a_line(descriptor: int) -> bool:
    size = os.fstat(descriptor).st_size
    return size == 0 or os.pread(descriptor, 1, size - 1) == b"\n"
