"""Remembers which files this process wrote for whom, so that a watcher can tell echoes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

DEFAULT_CAPACITY = 10_000


class Origins:
    """Origin ids of the newest written files, by what `fstat` says of each; for any thread.

    A write puts a new inode in place, so device, inode, size and mtime name one version of a file.
    A writer records it before the rename that makes it seen: whoever sees the event finds it here.
    """

    def __init__(self, capacity: int = DEFAULT_CAPACITY) -> None:
        self._capacity = capacity
        self._ids: OrderedDict[tuple[int, int, int, int], str] = OrderedDict()
        self._lock = threading.Lock()

    def record(self, status: os.stat_result, origin_id: str) -> None:
        """Notes who has this version of a file written; an empty id is nobody."""
        if not origin_id:
            return
        with self._lock:
            self._ids[_version(status)] = origin_id
            self._ids.move_to_end(_version(status))
            while len(self._ids) > self._capacity:
                self._ids.popitem(last=False)

    def origin_of(self, status: os.stat_result) -> str:
        """Returns who had this version of a file written; empty for others and long ago."""
        with self._lock:
            return self._ids.get(_version(status), "")


def _version(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
