"""Looks after the journal in the background: what the dead left, then what is too old."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from services.io import metrics
from services.io.edit_journal import SHARDS
from services.io.temporaries import sweep_folder
from services.runtime.errors import LodestoneError
from services.runtime.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Executor

    from services.io.edit_journal import Journal
    from services.io.edit_records import Record
    from services.io.roots import Roots

STEP_SECONDS = 5.0
"""Pause between two steps; each looks at one of `SHARDS` parts: a round takes 20 minutes."""

MAX_FAILURES = 1000
"""Steps in a row that may fail before the upkeep gives up, over an hour."""


class JournalUpkeep:
    """Sweeps at start, then forgets old requests step by step; owns one task."""

    def __init__(
        self,
        journal: Journal,
        roots: Roots,
        executor: Executor,
        step_seconds: float = STEP_SECONDS,
    ) -> None:
        self._journal = journal
        self._roots = roots
        self._executor = executor
        self._step_seconds = step_seconds
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts the task in the running loop."""
        self._task = asyncio.create_task(self._run(), name="journal-upkeep")

    async def close(self) -> None:
        """Ends the task."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    def sweep(self, shard: int) -> int:
        """Removes temporary files of requests whose process died; returns how many. Blocks."""
        swept = sum(self._sweep_one(record) for record in self._journal.unfinished(shard))
        metrics.TEMPORARY_FILES_SWEPT.inc(swept)
        return swept

    def _sweep_one(self, record: Record) -> int:
        swept = self._sweep_folders(record.root, record.directory, record.folders)
        for root, folder in record.linked_folders:
            swept += self._sweep_folders(root, "", (folder,))
        return swept

    def _sweep_folders(self, root: str, directory: str, folders: Iterable[str]) -> int:
        swept = 0
        try:
            with self._roots.open_tree(root, directory) as tree:
                for folder in folders:
                    # The name is not looked at: a folder is what is opened.
                    try:
                        fd, _ = tree.open_parent(f"{folder}/x".lstrip("/"), follow=False)
                    except LodestoneError:
                        continue
                    try:
                        swept += sweep_folder(fd)
                    finally:
                        os.close(fd)
        except LodestoneError:
            return swept  # the root or the tree is gone, and its files with it
        return swept

    async def _run(self) -> None:
        """Goes through all parts at once to sweep them, then round after round with pauses."""
        counts = [0] * SHARDS
        failures, pause_seconds = 0, 0.0
        sweep: Callable[[int], int] = self.sweep
        while failures < MAX_FAILURES:
            for shard in range(SHARDS):
                try:
                    await self._in_thread(sweep, shard)
                    counts[shard] = await self._in_thread(self._journal.expire, shard)
                    failures = 0
                except Exception as error:  # noqa: BLE001 - the top of a loop: logged and bounded
                    failures += 1
                    if failures == 1:
                        get_logger().warning("journal_upkeep_failed", exc_info=error)
                metrics.EDIT_REQUESTS_REMEMBERED.set(sum(counts))
                await asyncio.sleep(pause_seconds)
            sweep, pause_seconds = (lambda _: 0), self._step_seconds
        get_logger().error("journal_upkeep_gave_up", failures=failures)

    async def _in_thread(self, work: Callable[[int], int], shard: int) -> int:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, shard)
