"""Which files of a tree changed since the database last saw them, and which are gone."""

from __future__ import annotations

import contextlib
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from services.indexer.errors import PayloadMismatchError
from services.indexer.run import Run, RunCounters, RunMode
from services.runtime.errors import DependencyUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence

    from services.indexer.io_client import IoClient, ScanBatch, ScannedFile
    from services.indexer.ledger import RunLedger
    from services.indexer.model import KnownFile, ScanSummary, Tree
    from services.indexer.patience import Patience
    from services.indexer.scope import PathScope
    from services.indexer.storage.files import FileStore

_PAGE_FILES = 2000

FileToParse = tuple[str, bytes]
"""A path, and the digest of the bytes that the nodes in the database are of; empty for none."""


@dataclass
class _DiffState:
    """What a scan has found so far."""

    known: AsyncIterator[KnownFile]
    current: KnownFile | None = None
    gone: array[int] = field(default_factory=lambda: array("q"))
    """Ids of files, eight bytes each: all of a large tree may be gone."""

    changed: list[FileToParse] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    unknown_folders: set[str] = field(default_factory=set)
    warnings: dict[str, str] = field(default_factory=dict)
    """By path of what could not be looked at, in any of the walks."""

    last_path: str = ""
    """Where the scan has come to; if it breaks off, the next one goes on behind it."""

    walked: str = ""
    """The last path that the current walk told, to see that its order is right."""


@dataclass(frozen=True, slots=True)
class DiffResult:
    """What is known at the end of a scan."""

    gone: Sequence[int]
    """Ids of files that the scan did not find, those of places that it could not look at too."""

    unknown_files: Collection[str]
    unknown_folders: tuple[str, ...]
    skipped: dict[str, int]
    warnings: Sequence[str]

    def surely_gone(self, paths: Sequence[str]) -> list[str]:
        """Returns which of the paths that were not found are gone, and not out of sight."""
        return [
            path
            for path in paths
            if path not in self.unknown_files and not path.startswith(self.unknown_folders)
        ]


class TreeDiff:
    """Walks tree and table side by side, both in byte order, so neither is held in memory.

    Args:
        run: the run; its counters are fed.
        tree: the tree.
        recipe: the rules by which files are cut now; a file cut by others has changed.
        scope: the paths of a scoped run, or None for the whole tree.
        batch_files: files that are handed on at once.
        send: takes changed files.
    """

    def __init__(
        self,
        run: Run,
        tree: Tree,
        recipe: str,
        scope: PathScope | None,
        *,
        io: IoClient,
        files: FileStore,
        ledger: RunLedger,
        patience: Patience,
        batch_files: int,
        send: Callable[[Sequence[FileToParse]], Awaitable[None]],
    ) -> None:
        self._run = run
        self._tree = tree
        self._recipe = recipe
        self._scope = scope
        self._io = io
        self._files = files
        self._ledger = ledger
        self._patience = patience
        self._batch_files = batch_files
        self._send_batch = send
        # What was told to have failed is read again, though it may look as before.
        self._looks_again = run.mode is RunMode.FULL or run.retry_of is not None

    async def find(self) -> DiffResult:
        """Returns what is gone, once all changed files are sent.

        Raises:
            TreeUnavailableError: the tree cannot be scanned.
            DependencyUnavailableError: io did not answer for too long.
        """
        state = _DiffState(known=self._known_files())
        state.current = await anext(state.known, None)
        summary = await self._walk_to_the_end(state)
        while state.current is not None:
            state.gone.append(state.current.id)
            state.current = await anext(state.known, None)
        await self._send(state, 0, flush=True)
        # What was left out of a scoped run's scan for its path alone was not skipped.
        skipped = {} if self._scope is not None else dict(summary.skipped)
        return DiffResult(
            state.gone,
            frozenset(state.warnings),
            tuple(state.unknown_folders),
            skipped,
            list(state.warnings.values()),
        )

    async def _walk_to_the_end(self, state: _DiffState) -> ScanSummary:
        """Walks again while io goes away, as long as each walk comes further than the last."""
        while True:
            before = state.last_path
            try:
                return await self._patience.call(lambda: self._walk(state))
            except DependencyUnavailableError:
                if state.last_path == before:
                    raise

    async def _walk(self, state: _DiffState) -> ScanSummary:
        """Compares the whole tree; called again, it goes on after the last path that it saw.

        What an earlier walk could not look at stays unknown, though it can be looked at by now:
        this walk passes over what lies there.
        """
        summary = None
        walked_before, state.walked = state.last_path, ""
        include = self._scope.includes() if self._scope is not None else []
        async with contextlib.aclosing(
            self._io.scan(self._tree, self._run.exclude, include)
        ) as scan:
            async for batch in scan:
                _note_warnings(state, batch)
                _check_order(state, batch)
                files = [
                    item for item in batch.files if item.path > walked_before and self._takes(item)
                ]
                for scanned in files:
                    await self._compare(state, scanned)
                await self._send(state, len(files))
                summary = batch.summary or summary
        if summary is None:
            raise PayloadMismatchError("io ended a scan without its summary.")
        return summary

    def _takes(self, file: ScannedFile | KnownFile) -> bool:
        return self._scope is None or self._scope.takes(file.path)

    async def _known_files(self) -> AsyncIterator[KnownFile]:
        after = ""
        while page := await self._page(after):
            for file in page:
                if self._takes(file):
                    yield file
            after = page[-1].path
            if len(page) < _PAGE_FILES:
                return

    async def _page(self, after: str) -> list[KnownFile]:
        names = self._scope.names() if self._scope is not None else None
        if names is None:
            return await self._files.page(self._run.workspace_id, after, _PAGE_FILES)
        return await self._files.page_of(self._run.workspace_id, sorted(names), after, _PAGE_FILES)

    async def _compare(self, state: _DiffState, scanned: ScannedFile) -> None:
        state.last_path = scanned.path
        while state.current is not None and state.current.path < scanned.path:
            state.gone.append(state.current.id)
            state.current = await anext(state.known, None)
        known = state.current
        if known is None or known.path != scanned.path:
            state.changed.append((scanned.path, b""))
            return
        state.current = await anext(state.known, None)
        if known.recipe != self._recipe or self._run.mode is RunMode.REPAIR:
            state.changed.append((scanned.path, b""))
        elif (
            self._looks_again
            or not known.signature.settled
            or not known.signature.same_as(scanned.signature)
        ):
            state.changed.append((scanned.path, known.digest))
        if self._scope is not None:
            state.unchanged.append(scanned.path)

    async def _send(self, state: _DiffState, scanned: int, *, flush: bool = False) -> None:
        """Hands changed files on in full batches, and counts."""
        if state.unchanged:
            # Its nodes belong to the run; a file that turns out to be changed brings its own.
            await self._ledger.cover_paths(self._run, state.unchanged)
            state.unchanged = []
        size = self._batch_files
        ready = len(state.changed) if flush else len(state.changed) // size * size
        todo, state.changed = state.changed[:ready], state.changed[ready:]
        if scanned or todo:
            counters = RunCounters(files_scanned=scanned, files_to_parse=len(todo))
            await self._ledger.record(self._run, counters)
        for start in range(0, len(todo), size):
            await self._send_batch(todo[start : start + size])


def _check_order(state: _DiffState, batch: ScanBatch) -> None:
    """Raises PayloadMismatchError when paths are not in order: files would look deleted."""
    for scanned in batch.files:
        if scanned.path <= state.walked:
            raise PayloadMismatchError("io told files of a scan out of order.")
        state.walked = scanned.path


def _note_warnings(state: _DiffState, batch: ScanBatch) -> None:
    for warning in batch.warnings:
        shown = warning.path or "the tree's top"
        # A link that cannot be looked at may lead to a file or to a folder.
        state.warnings[warning.path] = f"{shown} could not be looked at: {warning.failure.message}"
        if warning.is_directory:
            state.unknown_folders.add(f"{warning.path}/" if warning.path else "")
