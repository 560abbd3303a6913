"""Small files that are replaced as a whole or not at all."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from services.runtime.durable import flush_folder

if TYPE_CHECKING:
    from pathlib import Path


def write_atomic(path: Path, text: str, *, like: os.stat_result | None = None) -> None:
    """Replaces a file: readers see the old text or the new one, also after a power cut.

    Args:
        path: the file.
        text: what it holds from then on.
        like: whose owner, group and rights it gets; None makes it its writer's alone.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            if like is not None:
                _give(descriptor, like)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def _give(descriptor: int, like: os.stat_result) -> None:
    made = os.fstat(descriptor)
    if (made.st_uid, made.st_gid) != (like.st_uid, like.st_gid):
        os.fchown(descriptor, like.st_uid, like.st_gid)
    os.fchmod(descriptor, like.st_mode & 0o777)


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
