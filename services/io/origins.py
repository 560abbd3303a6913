"""Remembers which files this process wrote for whom, so that a watcher can tell echoes."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

DEFAULT_CAPACITY = 10_000
ECHO_SECONDS = 60.0
"""Longest time from a write to its own event; what shows the version later is others' doing."""


class Origins:
    """Origin ids of the newest written files, by version and place of each; for any thread.

    A write puts a new inode in place, so device, inode, size and mtime name one version of a file.
    What others rename or link stays that version, so its folder and name are kept as well. A writer
    records both before the rename that makes it seen: whoever sees the event finds it here. It is
    kept for `ECHO_SECONDS`: a file that others took away may come back when nobody remembers that.
    """

    def __init__(
        self, capacity: int = DEFAULT_CAPACITY, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._capacity = capacity
        self._clock = clock
        self._ids: OrderedDict[tuple[int | str, ...], tuple[str, float]] = OrderedDict()
        self._lock = threading.Lock()

    def record(
        self, status: os.stat_result, folder: os.stat_result, name: str, origin_id: str
    ) -> None:
        """Notes who has this version of a file written to a name in a folder; an empty id: nobody.

        `status` and `folder` are what `fstat` says of the file and of the folder.
        """
        if not origin_id:
            return
        key = _key(status, folder, name)
        with self._lock:
            self._ids[key] = origin_id, self._clock()
            self._ids.move_to_end(key)
            while len(self._ids) > self._capacity:
                self._ids.popitem(last=False)

    def origin_of(self, status: os.stat_result, folder: os.stat_result, name: str) -> str:
        """Returns who had this version written to this place; empty for others and long ago."""
        with self._lock:
            origin_id, at = self._ids.get(_key(status, folder, name), ("", 0.0))
            return origin_id if self._clock() - at < ECHO_SECONDS else ""


def _key(status: os.stat_result, folder: os.stat_result, name: str) -> tuple[int | str, ...]:
    version = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
    return *version, folder.st_dev, folder.st_ino, name
