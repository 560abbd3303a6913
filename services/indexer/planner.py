"""The first half of a run: which files changed, and what that means for the nodes."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from itertools import groupby
from typing import TYPE_CHECKING

from services.indexer import metrics
from services.indexer.budgets import ItemBudget
from services.indexer.model import Failure, ParsedFile, ParseOutcome, Signature
from services.indexer.outcomes import failed_file
from services.indexer.patience import Patience
from services.indexer.run import Outcome, Run, RunCounters, RunMode
from services.indexer.scope import PathScope
from services.indexer.tree_diff import TreeDiff
from services.runtime.failpoints import failpoint
from services.runtime.globs import escape_glob
from services.runtime.telemetry import start_as_current_span, tell_failed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from services.indexer.io_client import IoClient
    from services.indexer.ledger import RunLedger
    from services.indexer.model import RegisteredModel, Tree
    from services.indexer.settings import IndexerSettings
    from services.indexer.storage.files import FileStore
    from services.indexer.storage.marks import MarkStore
    from services.indexer.tree_diff import FileToParse

_REMOVE_BATCH_FILES = 200
_GONE = "ERROR_REASON_FILE_NOT_FOUND"
_TIMEOUT = "ERROR_REASON_TIMEOUT"


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
        marks: MarkStore,
        settings: IndexerSettings,
        on_progress: Callable[[], None],
    ) -> None:
        self._run = run
        self._tree = tree
        self._model = model
        self._io = io
        self._files = files
        self._ledger = ledger
        self._marks = marks
        self._settings = settings
        self._on_progress = on_progress
        self.on_planned: Callable[[int], None] = lambda _count: None
        """Is told how many nodes were planned, at most so many of them wait."""
        self._patience = Patience(settings.dependency_patience_seconds)
        self._budget = ItemBudget(self._patience, io.probe)
        self._recipe = ""
        self._warnings: list[str] = []
        """Of the run, besides those of its scan."""
        self._failed: set[str] = set()
        self._replans: Counter[str] = Counter()

    async def plan(self) -> None:
        """Returns when every file of the run is looked at and every node known.

        Raises:
            TreeUnavailableError: the tree is not there; nothing was removed that it may still hold.
            DependencyUnavailableError: io did not answer for too long.
        """
        await self._learn_recipe()
        repair = self._run.mode is RunMode.REPAIR
        marked: dict[str, datetime] = {}
        if repair:
            marked, self._warnings = await self._marks.marked_files(self._run.workspace_id)
        entries = [*self._run.paths, *map(escape_glob, marked)]
        scope = PathScope(entries) if self._run.is_scoped else None
        if repair:
            await self._ledger.put_back_marked(self._run, self._model.id)
        if self._run.mode is RunMode.EMBED_ONLY or (scope is not None and not scope):
            await self._ledger.finish_scan(self._run, {}, ())  # nodes alone are wanted
        else:
            await self._scan_and_parse(scope)
        # What failed stays marked.
        done = {path: at for path, at in marked.items() if path not in self._failed}
        await self._marks.clear_files(self._run.workspace_id, done)
        await self._ledger.finish_plan(self._run)
        self._on_progress()

    async def replan(self, paths: Sequence[str]) -> None:
        """Parses files again that changed while their nodes were being embedded."""
        await self._learn_recipe()
        self._replans.update(paths)
        await self._ledger.record(self._run, RunCounters(files_to_parse=len(paths)))
        for attempts, group in groupby(sorted(paths, key=self._attempts), key=self._attempts):
            await self._parse([(path, b"") for path in group], attempts)

    async def _learn_recipe(self) -> None:
        """Asks io for its rules, once: what waits is embedded before the plan begins."""
        if not self._recipe:
            rules = await self._patience.call(self._io.recipe)
            self._recipe = f"{rules}/{self._model.max_tokens}"

    def _attempts(self, path: str) -> int:
        return 1 + self._replans[path]

    async def _scan_and_parse(self, scope: PathScope | None) -> None:
        batches: asyncio.Queue[Sequence[FileToParse] | None] = asyncio.Queue(
            maxsize=4 * self._settings.parse_batches_in_flight
        )
        async with asyncio.TaskGroup() as group:
            for number in range(self._settings.parse_batches_in_flight):
                group.create_task(self._parse_batches(batches), name=f"parse-{number}")
            await self._scan(scope, batches)
            for _ in range(self._settings.parse_batches_in_flight):
                await batches.put(None)

    async def _scan(
        self, scope: PathScope | None, batches: asyncio.Queue[Sequence[FileToParse] | None]
    ) -> None:
        async def send(files: Sequence[FileToParse]) -> None:
            self._on_progress()
            await batches.put(files)

        diff = TreeDiff(
            self._run,
            self._tree,
            self._recipe,
            scope,
            io=self._io,
            files=self._files,
            ledger=self._ledger,
            patience=self._patience,
            batch_files=self._settings.parse_batch_files,
            send=send,
        )
        started = time.perf_counter()
        with start_as_current_span("lodestone.indexer.scan"):
            result = await diff.find()
        seconds = time.perf_counter() - started
        metrics.STAGE_SECONDS.labels("scan").observe(seconds)
        await self._ledger.record(self._run, RunCounters(), stage_seconds={"scan": seconds})
        warnings = [*self._warnings, *result.warnings]
        await self._ledger.finish_scan(self._run, result.skipped, warnings)
        if result.gone:
            await self._patience.call(lambda: self._io.require_tree(self._tree))
        for start in range(0, len(result.gone), _REMOVE_BATCH_FILES):
            ids = result.gone[start : start + _REMOVE_BATCH_FILES]
            paths = await self._files.paths(self._run.workspace_id, ids)
            await self._files.remove(self._run, result.surely_gone(paths))
        self._on_progress()

    async def _parse_batches(self, batches: asyncio.Queue[Sequence[FileToParse] | None]) -> None:
        while (batch := await batches.get()) is not None:
            await self._parse(batch)

    async def _parse(self, files: Sequence[FileToParse], attempts: int = 1) -> None:
        started = time.perf_counter()
        with start_as_current_span("lodestone.indexer.parse") as span:
            outcomes = await self._budget.call(
                files,
                lambda some: self._io.parse(self._tree, some, self._model.max_tokens),
                _timed_out,
            )
            reasons = [outcome.failure.reason for outcome in outcomes if outcome.failure]
            tell_failed(span, [reason for reason in reasons if reason != _GONE])
        parsed_at = time.perf_counter()
        with start_as_current_span("lodestone.indexer.plan"):
            await failpoint("indexer.plan.before")
            await self._apply(outcomes, parsed_at - started, attempts)
            await failpoint("indexer.plan.after")
        seconds = time.perf_counter() - parsed_at
        metrics.STAGE_SECONDS.labels("parse").observe(parsed_at - started)
        metrics.STAGE_SECONDS.labels("plan").observe(seconds)
        # The share of what was parsed is told with it.
        others = sum(1 for outcome in outcomes if outcome.parsed is None) / max(1, len(outcomes))
        spent = {"plan": seconds, "parse": (parsed_at - started) * others}
        await self._ledger.record(self._run, RunCounters(), stage_seconds=spent)
        self._on_progress()

    async def _apply(self, outcomes: Sequence[ParseOutcome], seconds: float, attempts: int) -> None:
        share = seconds / max(1, len(outcomes))
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
                failed.append(failed_file(outcome.path, outcome.failure, share, attempts))
        self._failed.update(outcome.path for outcome in failed)
        if parsed:
            spent = share * len(parsed)
            await self._files.apply(
                self._run, self._model.id, self._recipe, parsed, spent, attempts=attempts
            )
            self.on_planned(sum(len(file.nodes) for file in parsed))
        if seen:
            await self._files.touch(self._run, seen, share)
        if gone:
            await self._patience.call(lambda: self._io.require_tree(self._tree))
            await self._files.remove(self._run, gone, "parse", share)
        if failed or gone:
            counters = RunCounters(files_failed=len(failed), files_parsed=len(failed) + len(gone))
            await self._ledger.record(self._run, counters, outcomes=failed)


def _timed_out(file: FileToParse) -> ParseOutcome:
    return ParseOutcome(
        file[0], failure=Failure(_TIMEOUT, "The file was not parsed within its time.")
    )
