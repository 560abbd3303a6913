"""Keeps a journal of requests within its limits, one folder of it at a time."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from services.io import metrics
from services.io.temporaries import same_file, try_lock
from services.runtime.errors import OverloadedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DAY_SECONDS = 24 * 3600.0
LEAST_KEPT_SECONDS = 600.0
"""No request is forgotten sooner, whatever comes: a caller that repeats does it within minutes."""

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_MEASURE_EVERY = 32
_RETRY_AFTER_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class JournalLimits:
    """What a journal may hold.

    Beyond it the oldest requests are forgotten before their time, and when these are younger than
    `LEAST_KEPT_SECONDS`, new ones are refused.
    """

    entries: int = 100_000
    total_bytes: int = 256 << 20
    kept_seconds: float = DAY_SECONDS

    def per_shard(self, shards: int) -> JournalLimits:
        """Returns the limits of one of some equal parts."""
        return JournalLimits(
            max(1, self.entries // shards), max(1, self.total_bytes // shards), self.kept_seconds
        )


class _Entry(NamedTuple):
    written_at: float
    size: int
    name: str


class JournalRoom:
    """Counts and removes the entries of folders; for any thread."""

    def __init__(self, limits: JournalLimits, clock: Callable[[], float] = time.time) -> None:
        self._limits = limits
        self._clock = clock
        self._lock = threading.Lock()
        self._left: dict[str, int] = {}

    def take(self, folder: Path) -> None:
        """Makes room for one more entry in a folder.

        Raises:
            OverloadedError: it is full of entries that may not be forgotten yet.
            OSError: as the operating system says.
        """
        with self._lock:
            left = self._left.get(folder.name, 0)
            if left == 0:
                count = self._shrink(folder, self._limits.entries - 1)
                left = min(self._limits.entries - count, _MEASURE_EVERY)
            self._left[folder.name] = left - 1

    def measure(self, folder: Path) -> int:
        """Removes what is too old from a folder; returns how many entries are left."""
        now = self._clock()
        entries = _entries_of(folder)
        expired = [e for e in entries if now - e.written_at > self._limits.kept_seconds]
        removed = sum(_remove(folder, entry.name) for entry in expired)
        return len(entries) - removed

    def _shrink(self, folder: Path, most: int) -> int:
        """Removes the oldest entries until no more than `most` are left; returns how many are."""
        now = self._clock()
        entries = _entries_of(folder)
        count, total = len(entries), sum(entry.size for entry in entries)
        for entry in entries:
            age = now - entry.written_at
            is_expired = age > self._limits.kept_seconds
            is_full = count > most or total > self._limits.total_bytes
            if not is_expired and (not is_full or age < LEAST_KEPT_SECONDS):
                break
            if _remove(folder, entry.name):
                count, total = count - 1, total - entry.size
                if not is_expired:
                    metrics.EDIT_REQUESTS_FORGOTTEN.inc()
        if count > most or total > self._limits.total_bytes:
            raise too_many_requests()
        return count


def too_many_requests() -> OverloadedError:
    """Returns the error of a journal that may forget nothing for another request."""
    return OverloadedError(
        "Too many requests wrote within minutes; their ids are still remembered.",
        metadata={"limit": "remembered requests"},
        retry_after_seconds=_RETRY_AFTER_SECONDS,
    )


def _entries_of(folder: Path) -> list[_Entry]:
    """Returns the entries of a folder, the oldest first."""
    found: list[_Entry] = []
    try:
        fd = os.open(folder, _FOLDER_FLAGS)
    except FileNotFoundError:
        return found
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                found.append(_Entry(status.st_mtime, status.st_size, entry.name))
    finally:
        os.close(fd)
    return sorted(found)


def _remove(folder: Path, name: str) -> bool:
    """Removes an entry unless its request is under way."""
    path = folder / name
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if not try_lock(fd) or not same_file(os.fstat(fd), path.lstat()):
            return False
        path.unlink()
    except OSError:
        return False
    finally:
        os.close(fd)
    return True
