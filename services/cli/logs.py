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


def last_telling_line(path: Path, *marks: str) -> str:
    """Returns the last line that holds one of the marks, else the last line with text in it.

    Reads the end of the file alone; long lines are cut.
    """
    lines = _tail(path)
    telling = [line for line in lines if any(mark in line for mark in marks)]
    return (telling or lines or ["its log is empty"])[-1][:_LINE_CHARACTERS]


def _tail(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return []
    return [line.strip() for line in text.splitlines() if line.strip()]
