"""Reads ranges and texts from files whose bytes are proven by digest first."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from services.io.answer import Answer
from services.io.content import content_hash, normal_form
from services.io.errors import ContentChangedError, InvalidUtf8Error, RangeOutsideFileError
from services.io.model import ContentRef, NodeContent, SnippetRef
from services.runtime.errors import LodestoneError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor

    from services.io.loader import FileLoader
    from services.io.paths import Tree

MAX_THREADS_PER_CALL = 4
SPREAD_AFTER_SECONDS = 0.005
"""A call begins with one thread and takes more when it lasts longer than this: what is in memory is
read fastest by one, as threads of Python hinder each other; a slow disk is read faster by more."""

MAX_CALLS = 16
"""Most calls that read at once, and so hold texts; others wait and hold none."""

RefT = TypeVar("RefT", bound=SnippetRef | ContentRef)
ResultT = TypeVar("ResultT")


class Reader:
    """Reads batches of items; each file of a batch is opened, read and digested once.

    Memory is bounded: a thread that reads has a permit and holds one file at a time, and at most
    `MAX_CALLS` calls hold answers. Whoever has a permit waits for nothing but the disk, so one
    permit is enough for any number of calls.
    """

    def __init__(
        self, executor: Executor, loader: FileLoader, *, permits: int, max_answer_bytes: int
    ) -> None:
        self._executor = executor
        self._loader = loader
        self._calls = asyncio.Semaphore(MAX_CALLS)
        self._permits = asyncio.Semaphore(permits)
        self._max_answer_bytes = max_answer_bytes

    async def read_snippets(
        self, open_tree: Callable[[], Tree], refs: Sequence[SnippetRef]
    ) -> list[bytes | LodestoneError]:
        """Returns the bytes of each range, or why it was not read, in the order of `refs`."""
        batch = _Batch(refs, _Kind(snippet_of, len), open_tree, self._loader)
        return await self._read(batch)

    async def read_contents(
        self, open_tree: Callable[[], Tree], refs: Sequence[ContentRef]
    ) -> list[NodeContent | LodestoneError]:
        """Returns the text of each node, or why it was not read, in the order of `refs`."""
        batch = _Batch(refs, _Kind(content_of, _text_bytes), open_tree, self._loader)
        return await self._read(batch)

    async def _read(self, batch: _Batch[RefT, ResultT]) -> list[ResultT | LodestoneError]:
        answer: Answer[ResultT] = Answer(batch.size, self._max_answer_bytes)
        async with self._calls:
            try:
                first = await self._start(batch, answer)
                await asyncio.wait((first,), timeout=SPREAD_AFTER_SECONDS)
                await (first if first.done() else self._spread(first, batch, answer))
            finally:
                batch.stop()
        return answer.results()

    async def _spread(
        self, first: asyncio.Future[None], batch: _Batch[RefT, ResultT], answer: Answer[ResultT]
    ) -> None:
        """Has more threads help the first one."""

        async def work() -> None:
            await (await self._start(batch, answer))

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(MAX_THREADS_PER_CALL - 1, batch.waiting)):
                    group.create_task(work())
                await first
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None

    async def _start(
        self, batch: _Batch[RefT, ResultT], answer: Answer[ResultT]
    ) -> asyncio.Future[None]:
        """Waits for a permit and has a thread work; the permit comes back when the thread is done.

        That is later than the future is, when the call was cancelled.
        """
        await self._permits.acquire()
        loop = asyncio.get_running_loop()
        work = self._executor.submit(batch.work, answer)
        work.add_done_callback(lambda _: loop.call_soon_threadsafe(self._permits.release))
        return asyncio.wrap_future(work)


@dataclass(frozen=True, slots=True)
class _Kind(Generic[RefT, ResultT]):
    """What is read: how an item is taken from a file's bytes, and how large it is."""

    take: Callable[[bytes, RefT], ResultT]
    size_of: Callable[[ResultT], int]


class _Batch(Generic[RefT, ResultT]):
    """The files of one call that no thread has taken yet, each with its items."""

    def __init__(
        self,
        refs: Sequence[RefT],
        kind: _Kind[RefT, ResultT],
        open_tree: Callable[[], Tree],
        loader: FileLoader,
    ) -> None:
        self.size = len(refs)
        self._kind = kind
        self._open_tree = open_tree
        self._loader = loader
        files: dict[str, list[tuple[int, RefT]]] = {}
        for item in enumerate(refs):
            path = item[1].path
            if path in files:
                files[path].append(item)
            else:
                files[path] = [item]
        self._files = deque(files.items())

    @property
    def waiting(self) -> int:
        """Files that no thread has taken."""
        return len(self._files)

    def stop(self) -> None:
        """Leaves what no thread has taken."""
        self._files.clear()

    def work(self, answer: Answer[ResultT]) -> None:
        """Reads file after file until none is left; for any number of threads at once."""
        if not self._files:
            return
        with self._open_tree() as tree:
            while True:
                try:
                    path, items = self._files.popleft()
                except IndexError:
                    return
                self._read_file(tree, path, items, answer)

    def _read_file(
        self, tree: Tree, path: str, items: list[tuple[int, RefT]], answer: Answer[ResultT]
    ) -> None:
        try:
            data, digest = self._loader.load(tree, path)
        except LodestoneError as error:
            answer.put((position, error, 0) for position, _ in items)
            return
        answer.put([self._taken(data, digest, position, ref) for position, ref in items])

    def _taken(
        self, data: bytes, digest: bytes, position: int, ref: RefT
    ) -> tuple[int, ResultT | LodestoneError, int]:
        try:
            if ref.file_digest != digest:
                raise ContentChangedError.at(
                    ref.path, "The file does not hold the bytes that the caller named."
                )
            result = self._kind.take(data, ref)
        except LodestoneError as error:
            return position, error, 0
        return position, result, self._kind.size_of(result)


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
    if start < size and data[start] & 0xC0 == 0x80:
        raise InvalidUtf8Error.at(path, f"The range cuts a character at byte {start}.")
    if end < size and data[end] & 0xC0 == 0x80:
        raise InvalidUtf8Error.at(path, f"The range cuts a character at byte {end}.")


def _text_bytes(content: NodeContent) -> int:
    return len(content.text.encode())
