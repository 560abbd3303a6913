"""Bytes of files that were read before, as long as the file system proves them unchanged."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

from services.io.content import file_digest
from services.io.signatures import signature_of

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

MAX_SHARE = 8
"""A file of more than one part in this many of the cache would push out too many others."""

_ENTRY_BYTES = 400
"""What an entry takes beside its data: key, objects, place in the order."""

_Key = tuple[int, int, int, int, int]


class FileBytes(NamedTuple):
    """What a file holds, and the BLAKE3-256 of it."""

    data: bytes
    digest: bytes

    @classmethod
    def of(cls, data: bytes) -> FileBytes:
        """Returns bytes with their digest."""
        return cls(data, file_digest(data))


class FileCache:
    """The newest files that were read, by what `fstat` says of each; for any thread.

    A hit saves reading and digesting, never opening: the file is opened by the rules of its tree,
    and `fstat` of that very file is the key. So nothing has to tell the cache of a change, and a
    file that two trees reach is held once. Only a settled file is kept: one that was touched just
    now may be changed again within a tick of its clock, and look the same. What a writer does
    through shared memory shows when the kernel writes it out, here as everywhere; until then a hit
    is what the file held before.
    """

    def __init__(self, max_bytes: int, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._max_bytes = max_bytes
        self._now_ns = now_ns
        self._files: OrderedDict[_Key, FileBytes] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def held_bytes(self) -> int:
        """Bytes that the cache takes, about."""
        return self._bytes

    def get(self, status: os.stat_result) -> FileBytes | None:
        """Returns what a file holds, None when that is not known."""
        key = _key(status)
        with self._lock:
            found = self._files.get(key)
            if found is not None:
                self._files.move_to_end(key)
            return found

    def put(self, before: os.stat_result, after: os.stat_result, found: FileBytes) -> None:
        """Keeps what was read between two looks at the file, if it must have been all of it."""
        size = _size(found)
        is_settled = signature_of(after, self._now_ns()).settled
        is_whole = _key(before) == _key(after) and after.st_size == len(found.data)
        if not (is_settled and is_whole) or size * MAX_SHARE > self._max_bytes:
            return
        with self._lock:
            replaced = self._files.pop(_key(after), None)
            self._bytes += size - (0 if replaced is None else _size(replaced))
            self._files[_key(after)] = found
            while self._bytes > self._max_bytes:
                _, oldest = self._files.popitem(last=False)
                self._bytes -= _size(oldest)


def _key(status: os.stat_result) -> _Key:
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def _size(found: FileBytes) -> int:
    return len(found.data) + _ENTRY_BYTES
