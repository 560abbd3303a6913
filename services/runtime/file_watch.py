"""Notices that files with credentials were replaced."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_LOOK_SECONDS = 1.0
"""Least time between two looks."""


class FileWatch:
    """Tells when a file may have changed, by looking at it at most once a second.

    Kubernetes swaps a symbolic link when a secret changes; `stat` follows it.
    """

    def __init__(self, *paths: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._paths = paths
        self._clock = clock
        self._looked = clock()
        self._seen = self._look()

    def changed(self) -> bool:
        """Returns whether any of the files is another than at the last time that this was true."""
        now = self._clock()
        if now - self._looked < _LOOK_SECONDS:
            return False
        self._looked = now
        seen = self._look()
        if seen == self._seen:
            return False
        self._seen = seen
        return True

    def _look(self) -> list[tuple[int, int, int]]:
        found = []
        for path in self._paths:
            try:
                status = path.stat()
            except OSError:
                found.append((0, 0, 0))
            else:
                found.append((status.st_ino, status.st_size, status.st_mtime_ns))
        return found
