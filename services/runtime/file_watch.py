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
        self._seen: list[tuple[int, int, int]] | None = self._look()
        self._told = ""

    def changed(self, *, at_once: bool = False) -> bool:
        """Returns whether any of the files is another than at the last time that this was true.

        It is true of the same files again when `failed` was told of them.

        Args:
            at_once: whether to look also where it was looked within the second before.
        """
        now = self._clock()
        at_once = at_once and self._seen is not None
        if now - self._looked < _LOOK_SECONDS and not at_once:
            return False
        self._looked = now
        seen = self._look()
        if seen == self._seen:
            return False
        if self._seen is not None:
            self._told = ""
        self._seen = seen
        return True

    def failed(self, reason: str) -> bool:
        """Has what changed be tried again at the next look: it could not be used.

        What mends that may not show in the files: rights that are given after the content, or an
        error of the moment.

        Returns:
            Whether the reason is another than at the try before.
        """
        news = reason != self._told
        self._seen, self._told = None, reason
        return news

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
