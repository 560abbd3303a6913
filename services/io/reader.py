"""Reads ranges and texts from files whose bytes are proven by digest first."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence  # noqa: TC003 - the fields of _Kind
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from services.io.answer import Answer
from services.io.beneath import WouldWaitError
from services.io.model import ContentRef, NodeContent, SnippetRef
from services.io.slicing import take_contents, take_snippets, text_bytes
from services.runtime.errors import LodestoneError

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

    from services.io.loader import FileLoader
    from services.io.paths import Tree

MAX_THREADS_PER_CALL = 4
SPREAD_AFTER_SECONDS = 0.005
"""A call begins with one thread and takes more when it lasts longer than this: what is in memory is
read fastest by one, as threads of Python hinder each other; a slow disk is read faster by more."""

AT_ONCE_SECONDS = 0.001
"""Time for which calls read in the loop's own thread, in one turn of the loop, what is in memory:
the way to another thread and back takes as long as eight small files do, and threads that read what
is in memory take Python's lock from each other more than they read."""

AT_ONCE_FILE_BYTES = 128 << 10
"""Largest file that is read in the loop: digesting it takes a tenth of a millisecond."""

MAX_CALLS = 16
"""Most calls that read at once, and so hold texts; others wait and hold none."""


class OpenTree(Protocol):
    """Opens the tree of a call; `waits` as `Tree` has it."""

    def __call__(self, *, waits: bool) -> Tree: ...


RefT = TypeVar("RefT", bound=SnippetRef | ContentRef)
ResultT = TypeVar("ResultT")


class Reader:
    """Reads batches of items; each file of a batch is opened, read and digested once.

    Memory is bounded: a thread that reads has a permit and holds one file at a time, and at most
    `MAX_CALLS` calls hold answers. Whoever has a permit waits for nothing but the disk, so one
    permit is enough for any number of calls. A call begins without one in the loop's own thread,
    which reads what needs no disk, one call in a turn of the loop, and holds no file between turns.
    """

    def __init__(
        self, executor: Executor, loader: FileLoader, *, permits: int, max_answer_bytes: int
    ) -> None:
        self._executor = executor
        self._loader = loader
        self._calls = asyncio.Semaphore(MAX_CALLS)
        self._permits = asyncio.Semaphore(permits)
        self._turn = asyncio.Lock()
        self._may_begin = asyncio.Event()
        self._may_begin.set()
        self._max_answer_bytes = max_answer_bytes

    async def read_snippets(
        self, open_tree: OpenTree, refs: Sequence[SnippetRef]
    ) -> list[bytes | LodestoneError]:
        """Returns the bytes of each range, or why it was not read, in the order of `refs`."""
        return await self._read(refs, _SNIPPETS, open_tree)

    async def read_contents(
        self, open_tree: OpenTree, refs: Sequence[ContentRef]
    ) -> list[NodeContent | LodestoneError]:
        """Returns the text of each node, or why it was not read, in the order of `refs`."""
        return await self._read(refs, _CONTENTS, open_tree)

    async def _read(
        self, refs: Sequence[RefT], kind: _Kind[RefT, ResultT], open_tree: OpenTree
    ) -> list[ResultT | LodestoneError]:
        batch = _Batch(refs, kind, open_tree, self._loader, self._max_answer_bytes)
        async with self._calls:
            await self._read_at_once(batch)
            if not batch.waiting:
                return batch.answer.results()
            await self._permits.acquire()
            spreading = _Spreading(self, batch)
            try:
                self._submit(batch)
                await batch.done
            finally:
                spreading.stop()
                batch.stop()
        return batch.answer.results()

    async def _read_at_once(self, batch: _Batch[RefT, ResultT]) -> None:
        """Reads in the loop's thread what is in memory, turn by turn; leaves what would wait.

        The lock is given to who has waited longest, so that calls take turns, also those that end
        in their first one.
        """
        has_more = True
        while has_more:
            async with self._turn:
                await self._may_begin.wait()  # whatever else there is to do comes first
                self._may_begin.clear()
                asyncio.get_running_loop().call_soon(self._may_begin.set)  # in the next turn
                has_more = batch.work_at_once()
            if has_more:
                await asyncio.sleep(0)  # who came meanwhile is before it

    async def spread(self, batch: _Batch[RefT, ResultT]) -> None:
        """Has more threads help the first one."""
        for _ in range(min(MAX_THREADS_PER_CALL - 1, batch.waiting)):
            await self._permits.acquire()
            self._submit(batch)

    def _submit(self, batch: _Batch[RefT, ResultT]) -> None:
        """Has a thread work; its permit comes back when it is done.

        That is later than the call's end, when the call was cancelled.
        """

        def end() -> None:
            self._permits.release()
            batch.end(work)

        loop = asyncio.get_running_loop()
        batch.threads += 1
        work = self._executor.submit(batch.work)
        # One way back for all there is to tell: to wake the loop takes as long as ten items do.
        work.add_done_callback(lambda _: loop.call_soon_threadsafe(end))


class _Spreading:
    """Has more threads help a call that lasts; made before the first thread begins."""

    def __init__(self, reader: Reader, batch: _Batch[Any, Any]) -> None:
        self._task: asyncio.Task[None] | None = None

        def begin() -> None:
            self._task = asyncio.create_task(reader.spread(batch), name="read-spread")

        self._timer = asyncio.get_running_loop().call_later(SPREAD_AFTER_SECONDS, begin)

    def stop(self) -> None:
        """Lets no further thread begin."""
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()


@dataclass(frozen=True, slots=True)
class _Kind(Generic[RefT, ResultT]):
    """What is read: how items are taken out of a file's bytes, and how large one is."""

    take: Callable[
        [bytes, bytes, Sequence[tuple[int, RefT]]],
        Iterator[tuple[list[tuple[int, ResultT | LodestoneError]], int]],
    ]
    size_of: Callable[[ResultT], int]
    asked_bytes: Callable[[Sequence[tuple[int, RefT]]], int]
    """How many bytes of their file items ask for: they take as long as they have bytes."""
    at_once_asked_bytes: int
    """Most bytes that the items of a file ask for and are taken in the loop: at worst four
    milliseconds' work, and a tenth of that as a rule."""
    at_once_bytes: int
    """Most bytes of a file, times its items, that are taken in the loop: a text may have to look
    at the line before it as well, a range looks at its own bytes alone."""


_PIECE_BYTES = 32
"""What a piece of a text takes beside its bytes, in bytes of the slowest texts."""


def _asked_snippet_bytes(items: Sequence[tuple[int, SnippetRef]]) -> int:
    asked = 0
    for _, ref in items:  # not sum(): a generator takes twice as long
        asked += ref.end - ref.start
    return asked


def _asked_content_bytes(items: Sequence[tuple[int, ContentRef]]) -> int:
    asked = 0
    for _, ref in items:
        asked += len(ref.segments) * _PIECE_BYTES
        if asked > _CONTENTS.at_once_asked_bytes:
            break  # there may be thousands
        for start, end in ref.segments:
            asked += max(0, end - start)
    return asked


_SNIPPETS: _Kind[SnippetRef, bytes] = _Kind(
    take_snippets, len, _asked_snippet_bytes, 2 << 20, sys.maxsize
)
_CONTENTS: _Kind[ContentRef, NodeContent] = _Kind(
    take_contents, text_bytes, _asked_content_bytes, 32 << 10, 512 << 10
)


class _Batch(Generic[RefT, ResultT]):
    """One call: the files that no thread has taken yet, each with its items, and the answer."""

    def __init__(
        self,
        refs: Sequence[RefT],
        kind: _Kind[RefT, ResultT],
        open_tree: OpenTree,
        loader: FileLoader,
        max_answer_bytes: int,
    ) -> None:
        self.answer: Answer[ResultT] = Answer(len(refs), max_answer_bytes, kind.size_of)
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.threads = 0
        """Threads that work; changed in the loop alone."""
        self._is_left = False
        self._take = kind.take
        self._kind = kind
        self._open_tree = open_tree
        self._load = loader.load
        files: defaultdict[str, list[tuple[int, RefT]]] = defaultdict(list)
        for item in enumerate(refs):
            files[item[1].path].append(item)
        self._files = deque(files.items())

    @property
    def waiting(self) -> int:
        """Files that no thread has taken."""
        return len(self._files)

    def stop(self) -> None:
        """Leaves what no thread has taken, and the rest of files that ask for much."""
        self._is_left = True
        self._files.clear()

    def end(self, work: Future[None]) -> None:
        """Notes that a thread is done, in the loop; the last one ends the call."""
        self.threads -= 1
        if self.done.done():  # the call was cancelled, or failed
            return
        if work.cancelled():  # the threads are being closed
            self.done.cancel()
        elif (error := work.exception()) is not None:
            self.done.set_exception(error)
        elif not self.threads:
            self.done.set_result(None)

    def work_at_once(self) -> bool:
        """Reads file after file in the loop, as long as that takes no waiting and little time.

        Returns:
            Whether time alone ended it: there is more that may be in memory.
        """
        until = time.perf_counter() + AT_ONCE_SECONDS
        files, asked_bytes = self._files, self._kind.asked_bytes
        with suppress(WouldWaitError), self._open_tree(waits=False) as tree:
            while files and time.perf_counter() < until:
                path, items = files[0]
                if asked_bytes(items) > self._kind.at_once_asked_bytes:
                    return False
                most = min(AT_ONCE_FILE_BYTES, self._kind.at_once_bytes // len(items))
                self._read(tree, path, items, most)
                del files[0]
            return bool(files)
        return False

    def work(self) -> None:
        """Reads file after file until none is left; for any number of threads at once."""
        if not self._files:
            return
        next_file = self._files.popleft
        with self._open_tree(waits=True) as tree:
            while True:
                try:
                    path, items = next_file()
                except IndexError:
                    return
                self._read(tree, path, items)

    def _read(
        self, tree: Tree, path: str, items: Sequence[tuple[int, RefT]], at_once_bytes: int = 0
    ) -> None:
        try:
            data, digest = self._load(tree, path, at_once_bytes=at_once_bytes)
        except LodestoneError as error:
            self.answer.put([(position, error) for position, _ in items], 0)
        else:
            for taken, size in self._take(data, digest, items):
                self.answer.put(taken, size)
                if self._is_left:
                    return
