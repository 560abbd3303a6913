"""Carries out requests that write: once each, file by file, and what is begun is finished."""

from __future__ import annotations

import asyncio
import random
import threading
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from services.io import metrics
from services.io.atomic import PutOptions
from services.io.changes import FileEdits, WrittenFile
from services.io.edit_records import Record
from services.io.errors import RETRY_AFTER_SECONDS, ReadOnlyError
from services.io.file_changes import look, make, named_twice
from services.io.temporaries import Sweeper
from services.runtime.errors import Code, LodestoneError, OverloadedError
from services.runtime.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence
    from concurrent.futures import Executor

    from services.io.changes import Change, Intent, Outcome, WriteRequest
    from services.io.edit_journal import Journal, JournalEntry
    from services.io.origins import Origins
    from services.io.roots import Roots

_FIRST_PAUSE_SECONDS = 0.002
_LONGEST_PAUSE_SECONDS = 0.1

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class WriteRules:
    """Limits of writing."""

    max_file_bytes: int
    lock_wait_seconds: float = 10.0
    """Longest wait for a file, or a request id, that somebody else has."""
    parallel_files: int = 4
    """Most files of one call that are written at once."""
    read_only: bool = False
    """Whether every write is refused."""


class NotBegunError(LodestoneError):
    """The caller went away before this file's turn; it is as it was."""

    reason = "ERROR_REASON_CANCELLED"
    code = Code.CANCELLED


class Writer:
    """Carries out requests; use it from one event loop."""

    def __init__(
        self,
        roots: Roots,
        journal: Journal,
        origins: Origins,
        executor: Executor,
        rules: WriteRules,
    ) -> None:
        self._parts = _Parts(roots, journal, origins, executor, rules, Sweeper())
        self._tasks: set[asyncio.Task[list[Outcome]]] = set()

    async def write(self, request: WriteRequest) -> list[Outcome]:
        """Makes the changes of a request; returns how each ended, in its order.

        A repeated request is answered with what the first one was. When the caller is cancelled,
        files that are begun are finished and noted, and no further ones are begun.

        Raises:
            ReadOnlyError: this server, or the root, is not to be written to.
            NotFoundError: there is no such root.
            FileError: there is no such folder beneath it, or it may not be opened.
            RequestIdReusedError: the id belongs to another request.
            OverloadedError: the id stayed under way too long, or too many are remembered.
            DiskFullError, DependencyUnavailableError: the request cannot be noted.
        """
        call = _Call(self._parts, request)
        task = asyncio.create_task(call.run(), name="write")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            call.is_cancelled.set()
            task.add_done_callback(_tell_failure)
            raise

    async def close(self) -> None:
        """Waits for what is begun."""
        if self._tasks:
            await asyncio.wait(self._tasks)


@dataclass(frozen=True, slots=True)
class _Parts:
    """What all requests share."""

    roots: Roots
    journal: Journal
    origins: Origins
    executor: Executor
    rules: WriteRules
    sweeper: Sweeper


class _Call:
    """One request on its way."""

    def __init__(self, parts: _Parts, request: WriteRequest) -> None:
        self._parts = parts
        self._request = request
        self._open_tree = parts.roots.tree_of_call(request.root, request.directory)
        self._unmade: set[int] = set()
        self.is_cancelled = threading.Event()

    async def run(self) -> list[Outcome]:
        """Carries the request out, or finds that it was."""
        request = self._request
        entry = await self._patiently(self._begin, "Another request of this id is under way.")
        done: list[Outcome] = []
        try:
            outcomes: list[Outcome | None] = [
                entry.record.outcome_of(position) for position in range(len(request.changes))
            ]
            if all(outcome is not None for outcome in outcomes):
                metrics.WRITES_REPEATED.inc()
            else:
                done = await self._carry_out(entry, outcomes)
            return [outcome for outcome in outcomes if outcome is not None]
        finally:
            await self._in_thread(lambda: _end(entry, done, self._unmade))

    def _begin(self) -> JournalEntry | None:
        """Opens the request's entry; a tree that is gone fails the call, not each of its files."""
        request, parts = self._request, self._parts
        if parts.rules.read_only or self._open_tree.root().read_only:
            raise ReadOnlyError("Nothing may be written here.")
        entry = parts.journal.begin(request.request_id, request.fingerprint)
        if entry is not None and not entry.record.outcomes:
            try:
                self._open_tree().close()
            except BaseException:
                entry.close()
                raise
        return entry

    async def _carry_out(
        self, entry: JournalEntry, outcomes: list[Outcome | None]
    ) -> list[Outcome]:
        """Fills in the outcomes that are missing; returns all."""
        if len(outcomes) > 1 and not entry.record.intents:
            await self._in_thread(lambda: self._refuse_what_is_named_twice(outcomes))
        intents = await self._look(entry.record, outcomes)
        if any(outcome is None for outcome in outcomes):
            await self._in_thread(lambda: entry.intend(self._record(entry.record, intents)))
            await self._make_all(entry, outcomes)
        done = [outcome for outcome in outcomes if outcome is not None]
        _count(self._request, done)
        assert len(done) == len(self._request.changes)
        return done

    def _refuse_what_is_named_twice(self, outcomes: list[Outcome | None]) -> None:
        request = self._request
        with self._open_tree() as tree:
            for position, error in named_twice(tree, request.changes).items():
                outcomes[position] = outcomes[position] or error

    async def _look(
        self, record: Record, outcomes: list[Outcome | None]
    ) -> tuple[Intent | None, ...]:
        """Returns what each change is about to make; outcomes that are clear now are filled in."""
        intents: list[Intent | None] = list(record.intents) or [None] * len(outcomes)

        def look_at(position: int, change: Change) -> None:
            known = record.intent_of(position)
            try:
                with self._open_tree() as tree:
                    found = look(
                        tree,
                        change,
                        self._parts.rules.max_file_bytes,
                        known=known,
                        is_strong=self._request.is_strong,
                    )
            except LodestoneError as error:
                outcomes[position] = error
                return
            if isinstance(found, WrittenFile):
                outcomes[position] = found
            else:
                intents[position] = found

        await self._each(outcomes, lambda p, c: self._in_thread(lambda: look_at(p, c)))
        return tuple(intents)

    async def _make_all(self, entry: JournalEntry, outcomes: list[Outcome | None]) -> None:
        """Makes the changes; the new files are written while the journal is flushed."""
        # Submitted before those that wait for it in threads, so it never waits for one of theirs.
        flushed = self._parts.executor.submit(
            entry.flush if self._request.is_strong else lambda: None
        )
        options = PutOptions(
            self._request.is_strong,
            self._request.origin_id,
            self._parts.origins,
            self._parts.sweeper,
        )

        async def make_one(position: int, change: Change) -> None:
            def before_rename() -> None:
                flushed.result()
                self._unmade.discard(position)

            own = replace(options, before_rename=before_rename)

            def attempt() -> WrittenFile | None:
                self._unmade.add(position)
                made = self._make(change, own)
                if made is None:  # the name went to others, maybe when all was ready
                    self._unmade.add(position)
                return made

            try:
                outcomes[position] = await self._patiently(attempt, "Somebody else holds the file.")
            except LodestoneError as error:
                outcomes[position] = error

        await self._each(outcomes, make_one)
        with suppress(LodestoneError):  # told by each file that waited for it
            await asyncio.wrap_future(flushed)

    def _make(self, change: Change, options: PutOptions) -> WrittenFile | None:
        if self.is_cancelled.is_set():
            raise NotBegunError("The caller went away before this file's turn.")
        with self._open_tree() as tree:
            return make(tree, change, self._parts.rules.max_file_bytes, options)

    def _record(self, before: Record, intents: tuple[Intent | None, ...]) -> Record:
        request = self._request
        folders = {change.path.rpartition("/")[0] for change in request.changes}
        linked = {i.linked_folder for i in intents if i is not None and i.linked_folder is not None}
        return Record(
            request.fingerprint,
            request.root,
            request.directory,
            tuple(sorted(folders)),
            intents,
            before.outcomes,
            tuple(sorted(linked.union(before.linked_folders))),
        )

    async def _each(
        self,
        outcomes: Sequence[Outcome | None],
        work: Callable[[int, Change], Awaitable[None]],
    ) -> None:
        """Does something for each change without outcome, some at a time, in their order."""
        left = iter([p for p, outcome in enumerate(outcomes) if outcome is None])

        async def take_turns() -> None:
            for position in left:
                await work(position, self._request.changes[position])

        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._parts.rules.parallel_files, len(outcomes))):
                group.create_task(take_turns(), name="write-files")

    async def _patiently(self, attempt: Callable[[], ResultT | None], held: str) -> ResultT:
        """Repeats an attempt in threads until it has a result; no thread waits for a lock."""
        clock = asyncio.get_running_loop().time
        until = clock() + self._parts.rules.lock_wait_seconds
        pause = _FIRST_PAUSE_SECONDS
        while (result := await self._in_thread(attempt)) is None:
            if clock() >= until:
                raise OverloadedError(
                    held, metadata={"limit": "wait"}, retry_after_seconds=RETRY_AFTER_SECONDS
                )
            metrics.WRITE_LOCK_WAITS.inc()
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - only a pause
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        return result

    async def _in_thread(self, work: Callable[[], ResultT]) -> ResultT:
        return await asyncio.get_running_loop().run_in_executor(self._parts.executor, work)


def _end(entry: JournalEntry, done: Sequence[Outcome], unmade: Collection[int]) -> None:
    """Notes how a request ended, if it did just now, and lets go of its entry."""
    try:
        if done:
            entry.finish(done, unmade)
    except LodestoneError as error:
        # The files are as they should be, and what was intended tells so to a repeated request.
        get_logger().warning("write_not_noted", reason=error.reason)
    finally:
        entry.close()


def _count(request: WriteRequest, outcomes: Sequence[Outcome]) -> None:
    for change, outcome in zip(request.changes, outcomes, strict=True):
        kind = "edit" if isinstance(change, FileEdits) else "create"
        ended = "written" if isinstance(outcome, WrittenFile) else "failed"
        metrics.WRITTEN_FILES.labels(kind, ended).inc()


def _tell_failure(task: asyncio.Task[list[Outcome]]) -> None:
    """Logs how a request failed whose caller is gone."""
    if not task.cancelled() and (error := task.exception()) is not None:
        reason = error.reason if isinstance(error, LodestoneError) else "unexpected"
        get_logger().warning("write_failed_after_cancel", reason=reason)
