"""The first half of a run: which files changed, and what that means for the nodes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from services.indexer import metrics
from services.indexer.errors import PayloadMismatchError
from services.indexer.model import (
    Failure,
    KnownFile,
    Outcome,
    OutcomeResult,
    ParsedFile,
    ParseOutcome,
    Run,
    RunCounters,
    RunMode,
    Signature,
)
from services.indexer.patience import Patience
from services.runtime.errors import DependencyUnavailableError
from services.runtime.failpoints import failpoint
from services.runtime.telemetry import tracer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from services.indexer.io_client import IoClient, ScanBatch, ScannedFile
    from services.indexer.ledger import RunLedger
    from services.indexer.model import RegisteredModel, ScanSummary, Tree
    from services.indexer.settings import IndexerSettings
    from services.indexer.storage.files import FileStore

_PAGE_FILES = 2000
_REMOVE_BATCH_FILES = 200
_GONE = "ERROR_REASON_FILE_NOT_FOUND"
_TIMEOUT = "ERROR_REASON_TIMEOUT"


@dataclass
class _ScanState:
    """What a scan has found so far."""

    known: AsyncIterator[KnownFile]
    current: KnownFile | None = None
    gone: list[str] = field(default_factory=list)
    changed: list[tuple[str, bytes]] = field(default_factory=list)
    unknown_folders: list[str] = field(default_factory=list)
    unknown_files: set[str] = field(default_factory=set)
    warnings: list[str] = field(default_factory=list)
    last_path: str = ""
    """Where the scan has come to; if it breaks off, the next one goes on behind it."""

    walked: str = ""
    """The last path that the current walk told, to see that its order is right."""


class Planner:
    """Scans the tree against the database, parses what changed, and makes the database follow."""

    def __init__(
        self,
        run: Run,
        tree: Tree,
        model: RegisteredModel,
        *,
        io: IoClient,
        files: FileStore,
        ledger: RunLedger,
        settings: IndexerSettings,
        on_progress: Callable[[], None],
    ) -> None:
        self._run = run
        self._tree = tree
        self._model = model
        self._io = io
        self._files = files
        self._ledger = ledger
        self._settings = settings
        self._on_progress = on_progress
        self._patience = Patience(settings.dependency_patience_seconds)
        self._recipe = ""

    async def plan(self) -> None:
        """Returns when every file is looked at and every node known.

        Raises:
            TreeUnavailableError: the tree cannot be scanned; nothing was removed.
            DependencyUnavailableError: io did not answer for too long.
        """
        self._recipe = f"{await self._patience.call(self._io.recipe)}/{self._model.max_tokens}"
        batches: asyncio.Queue[Sequence[tuple[str, bytes]] | None] = asyncio.Queue(
            maxsize=4 * self._settings.parse_batches_in_flight
        )
        async with asyncio.TaskGroup() as group:
            for number in range(self._settings.parse_batches_in_flight):
                group.create_task(self._parse_batches(batches), name=f"parse-{number}")
            await self._scan(batches)
            for _ in range(self._settings.parse_batches_in_flight):
                await batches.put(None)
        await self._ledger.finish_plan(self._run)
        self._on_progress()

    async def replan(self, paths: Sequence[str]) -> None:
        """Parses files again that changed while their nodes were being embedded."""
        await self._parse([(path, b"") for path in paths])

    async def _scan(self, batches: asyncio.Queue[Sequence[tuple[str, bytes]] | None]) -> None:
        """Walks tree and table side by side, both in byte order, so neither is held in memory."""
        started = time.perf_counter()
        state = _ScanState(known=self._known_files())
        state.current = await anext(state.known, None)
        with tracer().start_as_current_span("lodestone.indexer.scan"):
            summary = await self._walk_to_the_end(state, batches)
        while state.current is not None:
            state.gone.append(state.current.path)
            state.current = await anext(state.known, None)
        await self._send(state, batches, 0, flush=True)
        seconds = time.perf_counter() - started
        metrics.STAGE_SECONDS.labels("scan").observe(seconds)
        await self._ledger.record(self._run, RunCounters(), stage_seconds={"scan": seconds})
        await self._ledger.finish_scan(self._run, summary.skipped, state.warnings)
        await self._remove(state)
        self._on_progress()

    async def _walk_to_the_end(
        self, state: _ScanState, batches: asyncio.Queue[Sequence[tuple[str, bytes]] | None]
    ) -> ScanSummary:
        """Walks again while io goes away, as long as each walk comes further than the last."""
        while True:
            before = state.last_path
            try:
                return await self._patience.call(lambda: self._walk(state, batches))
            except DependencyUnavailableError:
                if state.last_path == before:
                    raise

    async def _walk(
        self, state: _ScanState, batches: asyncio.Queue[Sequence[tuple[str, bytes]] | None]
    ) -> ScanSummary:
        """Compares the whole tree; called again, it goes on after the last path that it saw."""
        summary = None
        # What an earlier walk could not look at is seen again, or can be looked at by now.
        state.warnings, state.unknown_folders, state.unknown_files = [], [], set()
        walked_before, state.walked = state.last_path, ""
        async with contextlib.aclosing(self._io.scan(self._tree, self._run.exclude)) as scan:
            async for batch in scan:
                _note_warnings(state, batch)
                _check_order(state, batch)
                files = [item for item in batch.files if item.path > walked_before]
                for scanned in files:
                    await self._compare(state, scanned)
                await self._send(state, batches, len(files))
                summary = batch.summary or summary
        if summary is None:
            raise PayloadMismatchError("io ended a scan without its summary.")
        return summary

    async def _known_files(self) -> AsyncIterator[KnownFile]:
        after = ""
        while page := await self._files.page(self._run.workspace_id, after, _PAGE_FILES):
            for file in page:
                yield file
            after = page[-1].path
            if len(page) < _PAGE_FILES:
                return

    async def _compare(self, state: _ScanState, scanned: ScannedFile) -> None:
        state.last_path = scanned.path
        while state.current is not None and state.current.path < scanned.path:
            state.gone.append(state.current.path)
            state.current = await anext(state.known, None)
        known = state.current
        if known is None or known.path != scanned.path:
            state.changed.append((scanned.path, b""))
            return
        state.current = await anext(state.known, None)
        if known.recipe != self._recipe:
            state.changed.append((scanned.path, b""))
        elif (
            self._run.mode is RunMode.FULL
            or not known.signature.settled
            or not known.signature.same_as(scanned.signature)
        ):
            state.changed.append((scanned.path, known.digest))

    async def _send(
        self,
        state: _ScanState,
        batches: asyncio.Queue[Sequence[tuple[str, bytes]] | None],
        scanned: int,
        *,
        flush: bool = False,
    ) -> None:
        """Hands changed files on in full batches, and counts."""
        size = self._settings.parse_batch_files
        ready = len(state.changed) if flush else len(state.changed) // size * size
        todo, state.changed = state.changed[:ready], state.changed[ready:]
        if scanned or todo:
            counters = RunCounters(files_scanned=scanned, files_to_parse=len(todo))
            await self._ledger.record(self._run, counters)
            self._on_progress()
        for start in range(0, len(todo), size):
            await batches.put(todo[start : start + size])

    async def _remove(self, state: _ScanState) -> None:
        """Removes files that are gone; what lies beneath an unreadable folder is not."""
        folders = tuple(state.unknown_folders)
        gone = [
            path
            for path in state.gone
            if path not in state.unknown_files and not path.startswith(folders)
        ]
        for start in range(0, len(gone), _REMOVE_BATCH_FILES):
            await self._files.remove(self._run, gone[start : start + _REMOVE_BATCH_FILES])

    async def _parse_batches(
        self, batches: asyncio.Queue[Sequence[tuple[str, bytes]] | None]
    ) -> None:
        while (batch := await batches.get()) is not None:
            await self._parse(batch)

    async def _parse(self, files: Sequence[tuple[str, bytes]]) -> None:
        started = time.perf_counter()
        with tracer().start_as_current_span("lodestone.indexer.parse"):
            outcomes = await self._patience.call(
                lambda: self._io.parse(self._tree, files, self._model.max_tokens)
            )
        parsed_at = time.perf_counter()
        with tracer().start_as_current_span("lodestone.indexer.plan"):
            await failpoint("indexer.plan.before")
            await self._apply(outcomes, parsed_at - started)
            await failpoint("indexer.plan.after")
        seconds = time.perf_counter() - parsed_at
        metrics.STAGE_SECONDS.labels("parse").observe(parsed_at - started)
        metrics.STAGE_SECONDS.labels("plan").observe(seconds)
        await self._ledger.record(self._run, RunCounters(), stage_seconds={"plan": seconds})
        self._on_progress()

    async def _apply(self, outcomes: Sequence[ParseOutcome], seconds: float) -> None:
        parsed: list[ParsedFile] = []
        seen: dict[str, Signature] = {}
        gone: list[str] = []
        failed: list[Outcome] = []
        for outcome in outcomes:
            if outcome.parsed is not None:
                parsed.append(outcome.parsed)
            elif outcome.unchanged is not None:
                seen[outcome.path] = outcome.unchanged
            elif outcome.failure is not None and outcome.failure.reason == _GONE:
                gone.append(outcome.path)  # it vanished since the scan
            elif outcome.failure is not None:
                failed.append(_file_failure(outcome.path, outcome.failure))
        if parsed:
            await self._files.apply(self._run, self._model.id, self._recipe, parsed, seconds)
        if seen:
            await self._files.touch(self._run, seen)
        if gone:
            await self._files.remove(self._run, gone)
        if failed or gone:
            counters = RunCounters(files_failed=len(failed), files_parsed=len(failed) + len(gone))
            await self._ledger.record(self._run, counters, outcomes=failed)


def _check_order(state: _ScanState, batch: ScanBatch) -> None:
    """Raises PayloadMismatchError when paths are not in order: files would look deleted."""
    for scanned in batch.files:
        if scanned.path <= state.walked:
            raise PayloadMismatchError("io told files of a scan out of order.")
        state.walked = scanned.path


def _note_warnings(state: _ScanState, batch: ScanBatch) -> None:
    for warning in batch.warnings:
        shown = warning.path or "the tree's top"
        state.warnings.append(f"{shown} could not be looked at: {warning.failure.message}")
        if warning.is_directory:
            state.unknown_folders.append(f"{warning.path}/" if warning.path else "")
        else:
            state.unknown_files.add(warning.path)


def _file_failure(path: str, failure: Failure) -> Outcome:
    timed_out = failure.reason == _TIMEOUT
    return Outcome(
        entity="file",
        path=path,
        result=OutcomeResult.TIMEOUT if timed_out else OutcomeResult.FAILED,
        stage="parse",
        failure=failure,
    )
