"""Reads ranges and texts from files whose bytes are proven by digest first."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import defaultdict
from typing import TYPE_CHECKING, TypeVar

from services.io.content import content_hash, file_digest, normal_form
from services.io.errors import (
    ContentChangedError,
    FileTooLargeError,
    InvalidUtf8Error,
    RangeOutsideFileError,
    file_error,
)
from services.io.model import ContentRef, NodeContent, SnippetRef
from services.io.reading import read_to_end
from services.runtime.errors import LodestoneError, OverloadedError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Executor

    from services.io.paths import Tree

MAX_SLICES = 4
"""Most threads that one call uses."""

RefT = TypeVar("RefT", SnippetRef, ContentRef)
ResultT = TypeVar("ResultT", bytes, NodeContent)


class Reader:
    """Reads batches of items; each file of a batch is opened, read and digested once."""

    def __init__(
        self, executor: Executor, *, permits: int, max_file_bytes: int, max_answer_bytes: int
    ) -> None:
        self._executor = executor
        self._permits = asyncio.Semaphore(permits)
        self._max_file_bytes = max_file_bytes
        self._max_answer_bytes = max_answer_bytes

    async def read_snippets(
        self, open_tree: Callable[[], Tree], refs: Sequence[SnippetRef]
    ) -> list[bytes | LodestoneError]:
        """Returns the bytes of each range, or why it was not read, in the order of `refs`."""
        return self._bounded(await self._read(open_tree, refs, snippet_of), len)

    async def read_contents(
        self, open_tree: Callable[[], Tree], refs: Sequence[ContentRef]
    ) -> list[NodeContent | LodestoneError]:
        """Returns the text of each node, or why it was not read, in the order of `refs`."""
        results = await self._read(open_tree, refs, content_of)
        return self._bounded(results, lambda content: len(content.text))

    async def _read(
        self,
        open_tree: Callable[[], Tree],
        refs: Sequence[RefT],
        take: Callable[[bytes, RefT], ResultT],
    ) -> list[ResultT | LodestoneError]:
        by_path: dict[str, dict[int, RefT]] = defaultdict(dict)
        for position, ref in enumerate(refs):
            by_path[ref.path][position] = ref
        results: list[ResultT | LodestoneError | None] = [None] * len(refs)
        paths = list(by_path)
        is_cancelled = threading.Event()

        def read_slice(number: int) -> None:
            with open_tree() as tree:
                for path in paths[number::MAX_SLICES]:
                    if is_cancelled.is_set():
                        return
                    self._read_file(tree, by_path[path], take, results)

        try:
            async with asyncio.TaskGroup() as group:
                for number in range(min(MAX_SLICES, len(paths))):
                    group.create_task(self._permitted(read_slice, number))
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        finally:
            is_cancelled.set()
        assert None not in results
        return [result for result in results if result is not None]

    async def _permitted(self, read_slice: Callable[[int], None], number: int) -> None:
        async with self._permits:
            await asyncio.get_running_loop().run_in_executor(self._executor, read_slice, number)

    def _read_file(
        self,
        tree: Tree,
        items: Mapping[int, RefT],
        take: Callable[[bytes, RefT], ResultT],
        results: list[ResultT | LodestoneError | None],
    ) -> None:
        path = next(iter(items.values())).path
        try:
            data = self._load(tree, path)
        except LodestoneError as error:
            for position in items:
                results[position] = error
            return
        digest = file_digest(data)
        for position, ref in items.items():
            try:
                if ref.file_digest != digest:
                    raise ContentChangedError.at(
                        path, "The file does not hold the bytes that the caller named."
                    )
                results[position] = take(data, ref)
            except LodestoneError as error:
                results[position] = error

    def _load(self, tree: Tree, path: str) -> bytes:
        fd, status = tree.open_file(path)
        try:
            data = read_to_end(fd, status.st_size, self._max_file_bytes)
        except OSError as error:
            raise file_error(error, path) from None
        finally:
            os.close(fd)
        if len(data) > self._max_file_bytes:
            size, limit = str(max(status.st_size, len(data))), str(self._max_file_bytes)
            raise FileTooLargeError.at(
                path, "The file is larger than the limit.", size=size, limit=limit
            )
        return data

    def _bounded(
        self, results: list[ResultT | LodestoneError], size_of: Callable[[ResultT], int]
    ) -> list[ResultT | LodestoneError]:
        """Replaces what would make the answer larger than a message may be."""
        total = 0
        for position, result in enumerate(results):
            if isinstance(result, LodestoneError):
                continue
            total += size_of(result)
            if total > self._max_answer_bytes:
                results[position] = OverloadedError(
                    "The answer would be too large; ask for fewer items.",
                    metadata={"limit": str(self._max_answer_bytes)},
                )
        return results


def snippet_of(data: bytes, ref: SnippetRef) -> bytes:
    """Returns the bytes of a range.

    Raises:
        RangeOutsideFileError, InvalidUtf8Error.
    """
    check_range(data, ref.path, ref.start, ref.end)
    content = data[ref.start : ref.end]
    try:
        content.decode()
    except UnicodeDecodeError:
        raise InvalidUtf8Error.at(ref.path, "The bytes are not valid UTF-8.") from None
    return content


def content_of(data: bytes, ref: ContentRef) -> NodeContent:
    """Returns the text of a node.

    Raises:
        RangeOutsideFileError, InvalidUtf8Error, ContentChangedError.
    """
    for segment in ref.segments:
        check_range(data, ref.path, segment.start, segment.end)
    try:
        text = normal_form(data, ref.segments)
    except UnicodeDecodeError:
        raise InvalidUtf8Error.at(ref.path, "The bytes are not valid UTF-8.") from None
    found = content_hash(text)
    if found != ref.content_hash:
        raise ContentChangedError.at(ref.path, "The text of the node has another hash.")
    return NodeContent(text, found)


def check_range(data: bytes, path: str, start: int, end: int) -> None:
    """Raises unless a range lies in the file and cuts no character."""
    size = len(data)
    if not start <= end <= size:
        raise RangeOutsideFileError.at(path, "The range ends after the file.", size=str(size))
    for edge in (start, end):
        if edge < size and data[edge] & 0xC0 == 0x80:
            raise InvalidUtf8Error.at(path, f"The range cuts a character at byte {edge}.")
