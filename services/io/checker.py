"""Tells of known files whether they changed, reading only those whose signature proves nothing."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import defaultdict
from typing import TYPE_CHECKING

from services.io.errors import (
    ContentChangedError,
    FileTooLargeError,
    PathNotFoundError,
    file_error,
)
from services.io.model import CheckedFile, KnownFile, Signature, Verdict
from services.io.reading import digest_to_end
from services.io.signatures import proves_unchanged, signature_of
from services.runtime.errors import LodestoneError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from concurrent.futures import Executor

    from services.io.paths import Tree

MAX_SLICES = 4
"""Most threads that one call uses at once."""
CHUNK_FILES = 64
"""Files that a thread checks before it lets other calls have a turn."""

_ItemsByPath = dict[str, dict[int, KnownFile]]


class Checker:
    """Checks batches of files; each file of a batch is opened once, and read at most once."""

    def __init__(self, executor: Executor, *, max_file_bytes: int) -> None:
        self._executor = executor
        self._max_file_bytes = max_file_bytes

    async def check(
        self, open_tree: Callable[[], Tree], files: Sequence[KnownFile]
    ) -> list[CheckedFile]:
        """Returns what became of each file, in the order of `files`.

        Raises:
            LodestoneError: the tree itself cannot be opened: told file by file it would look like
                deletions.
        """
        items: _ItemsByPath = defaultdict(dict)
        for position, file in enumerate(files):
            items[file.path][position] = file
        results: list[CheckedFile | None] = [None] * len(files)
        chunks = _chunks(list(items))
        is_cancelled = threading.Event()

        def check_chunk(paths: Sequence[str]) -> None:
            with open_tree() as tree:
                for path in paths:
                    if is_cancelled.is_set():
                        return
                    for position, result in self._look(tree, items[path]).items():
                        results[position] = result

        async def check_chunks() -> None:
            for chunk in chunks:
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(self._executor, check_chunk, chunk)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(MAX_SLICES):
                    group.create_task(check_chunks())
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        finally:
            is_cancelled.set()
        assert None not in results
        return [result for result in results if result is not None]

    def _look(self, tree: Tree, items: Mapping[int, KnownFile]) -> dict[int, CheckedFile]:
        """Returns what became of one file, for each item that names it."""
        path = next(iter(items.values())).path
        try:
            fd, status = tree.open_file(path)
        except PathNotFoundError:
            return dict.fromkeys(items, CheckedFile(Verdict.GONE))
        except LodestoneError as error:
            return dict.fromkeys(items, CheckedFile(Verdict.UNKNOWN, error=error))
        try:
            now = signature_of(status)
            proven = {
                position: CheckedFile(Verdict.UNCHANGED, file.signature)
                for position, file in items.items()
                if file.signature is not None and proves_unchanged(file.signature, now)
            }
            open_items = {p: file for p, file in items.items() if p not in proven}
            return proven | self._read(fd, status, open_items) if open_items else proven
        finally:
            os.close(fd)

    def _read(
        self, fd: int, status: os.stat_result, items: Mapping[int, KnownFile]
    ) -> dict[int, CheckedFile]:
        """Returns what became of one file by its digest."""
        path = next(iter(items.values())).path
        try:
            digest, signature = self._digest(fd, status, path)
        except LodestoneError as error:
            return dict.fromkeys(items, CheckedFile(Verdict.UNKNOWN, error=error))
        return {
            position: CheckedFile(
                Verdict.UNCHANGED if file.digest == digest else Verdict.CHANGED, signature, digest
            )
            for position, file in items.items()
        }

    def _digest(self, fd: int, before: os.stat_result, path: str) -> tuple[bytes, Signature]:
        """Returns the digest of a file and the signature of the bytes that were read.

        Raises:
            FileError: it is too large, cannot be read, or was written to while it was read.
        """
        limit = self._max_file_bytes
        if before.st_size > limit:
            raise _too_large(path, before.st_size, limit)
        try:
            digest, size = digest_to_end(fd, limit)
            after = os.fstat(fd)
        except OSError as error:
            raise file_error(error, path) from None
        if size > limit:
            raise _too_large(path, size, limit)
        if signature_of(before) != signature_of(after) or size != after.st_size:
            raise ContentChangedError.at(path, "The file was written to while it was read.")
        return digest, signature_of(after, read_at_ns=time.time_ns())


def _chunks(paths: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(paths), CHUNK_FILES):
        yield paths[start : start + CHUNK_FILES]


def _too_large(path: str, size: int, limit: int) -> FileTooLargeError:
    return FileTooLargeError.at(
        path, "The file is larger than the limit.", size=str(size), limit=str(limit)
    )
