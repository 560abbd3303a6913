"""Small files that are replaced as a whole or not at all."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from services.runtime.durable import flush_folder

if TYPE_CHECKING:
    from pathlib import Path


def write_atomic(path: Path, text: str, mode: int = 0o600) -> None:
    """Replaces a file: readers see the old text or the new one, also after a power cut."""
    temporary = path.with_name(f"{path.name}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def size_of(folder: Path) -> int:
    """Returns the bytes of all files beneath a folder; what vanishes meanwhile counts nothing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size  # noqa: PTH118 - called per file
            except FileNotFoundError:
                continue
    return total
