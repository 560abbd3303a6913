"""Log files of the processes that the command line starts."""

from __future__ import annotations

import os
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

ROTATE_BYTES = 10 << 20
_TAIL_BYTES = 16 << 10
_LINE_CHARACTERS = 400


def open_log(path: Path) -> IO[bytes]:
    """Opens a log for appending; a log over 10 MiB is put aside first, as one older copy."""
    if path.exists() and path.stat().st_size > ROTATE_BYTES:
        path.replace(path.with_name(f"{path.name}.1"))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    return os.fdopen(descriptor, "ab")


def log_end(path: Path) -> int:
    """Returns where a log ends, and so where that of a process that is started now begins."""
    return path.stat().st_size if path.exists() else 0


def last_telling_line(path: Path, *marks: str, start: int = 0) -> str:
    """Returns the last line that holds one of the marks, else the last line with text in it.

    Reads the end of the file alone; long lines are cut.

    Args:
        path: the log.
        marks: what tells that a line says why a process ended.
        start: where the lines of the process begin: those before it are of earlier ones.
    """
    lines = _tail(path, start)
    telling = [line for line in lines if any(mark in line for mark in marks)]
    return (telling or lines or ["it wrote nothing"])[-1][:_LINE_CHARACTERS]


def _tail(path: Path, start: int) -> list[str]:
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            file.seek(max(0, size - _TAIL_BYTES, start if start <= size else 0))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return []
    return [line.strip() for line in text.splitlines() if line.strip()]
