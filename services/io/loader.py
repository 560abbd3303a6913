"""Loads whole files with their digest, through the one door."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from services.io import metrics
from services.io.beneath import WouldWaitError
from services.io.cache import FileBytes
from services.io.errors import FileTooLargeError, file_error
from services.io.reading import read_at_once, read_to_end
from services.runtime.errors import LodestoneError

if TYPE_CHECKING:
    from services.io.cache import FileCache
    from services.io.paths import Tree


class FileLoader:
    """Loads files up to a size, out of a cache if there is one and it knows them."""

    def __init__(self, max_file_bytes: int, cache: FileCache | None = None) -> None:
        self._max_file_bytes = max_file_bytes
        self._cache = cache
        files = metrics.READ_FILES
        self._read, self._cached = files.labels("read"), files.labels("cached")
        self._failed = files.labels("failed")

    def load(self, tree: Tree, path: str, *, at_once_bytes: int = 0) -> FileBytes:
        """Returns what a file holds now; holds one open file meanwhile.

        Args:
            tree: where the file is.
            path: its path in the tree.
            at_once_bytes: the largest file that is read from a tree that does not wait.

        Raises:
            FileError: it may not be opened, is no regular file, or is larger than the limit.
            WouldWaitError: from a tree that does not wait alone: it is not in memory, or large.
        """
        try:
            fd, status = tree.open_file(path)
            try:
                if not tree.waits and status.st_size > at_once_bytes:
                    raise WouldWaitError
                return self._load(fd, status, path, waits=tree.waits)
            finally:
                os.close(fd)
        except LodestoneError:
            self._failed.inc()
            raise

    def _load(self, fd: int, status: os.stat_result, path: str, *, waits: bool) -> FileBytes:
        if status.st_size > self._max_file_bytes:  # not a byte of a sparse terabyte is read
            raise self._too_large(path, status.st_size)
        if self._cache is not None and (found := self._cache.get(status)) is not None:
            self._cached.inc()
            return found
        data = (
            self._bytes_of(fd, status.st_size, path) if waits else read_at_once(fd, status.st_size)
        )
        if len(data) > self._max_file_bytes:
            raise self._too_large(path, len(data))
        found = FileBytes.of(data)
        self._read.inc()
        if self._cache is not None:
            self._cache.put(status, os.fstat(fd), found)
            metrics.CACHE_BYTES.set(self._cache.held_bytes)
        return found

    def _bytes_of(self, fd: int, size: int, path: str) -> bytes:
        try:
            return read_to_end(fd, size, self._max_file_bytes)
        except OSError as error:
            raise file_error(error, path) from None

    def _too_large(self, path: str, size: int) -> FileTooLargeError:
        return FileTooLargeError.at(
            path,
            "The file is larger than the limit.",
            size=str(size),
            limit=str(self._max_file_bytes),
        )
