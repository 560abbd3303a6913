"""Tells which files a tree holds, and which of them changed."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lodestone.io.v1 import scan_service_pb2_grpc
from services.io import convert, convert_checks, metrics
from services.io.ignore import IgnoreRules
from services.io.model import SkipReason
from services.io.scanner import ScanRules, TreeScan
from services.runtime.errors import LodestoneError
from services.runtime.failpoints import failpoint
from services.runtime.log import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator, Sequence
    from concurrent.futures import Executor

    from lodestone.io.v1 import scan_service_pb2
    from services.io.checker import Checker
    from services.io.model import CheckedFile, ScanSummary
    from services.io.roots import Roots


class ScanServicer(scan_service_pb2_grpc.ScanServiceServicer):
    """Tells which files a tree holds."""

    def __init__(
        self, roots: Roots, executor: Executor, rules: ScanRules, checker: Checker
    ) -> None:
        self._roots = roots
        self._executor = executor
        self._rules = rules
        self._checker = checker

    async def ScanTree(
        self, request: scan_service_pb2.ScanTreeRequest, _context: Any
    ) -> AsyncIterator[scan_service_pb2.ScanTreeResponse]:
        """Streams the files of a tree; walks it batch by batch in a thread."""
        await failpoint("io.scan.before")
        started = time.perf_counter()
        loop = asyncio.get_running_loop()
        scan = _Scan(self._batches(request))
        outcome = "cancelled"
        try:
            while (message := await loop.run_in_executor(self._executor, scan.next)) is not None:
                if message.HasField("summary"):
                    await failpoint("io.scan.after")
                    outcome = "succeeded"
                yield message
        except LodestoneError:
            outcome = "failed"
            raise
        finally:
            scan.cancel(self._executor)
            seconds = time.perf_counter() - started
            metrics.SCANS.labels(outcome).inc()
            metrics.SCAN_SECONDS.observe(seconds)
            get_logger().info("tree_scanned", outcome=outcome, seconds=round(seconds, 4))

    async def CheckFiles(
        self, request: scan_service_pb2.CheckFilesRequest, _context: Any
    ) -> scan_service_pb2.CheckFilesResponse:
        """Tells for each named file whether it changed, in request order."""
        tree = request.tree
        with metrics.CHECK_SECONDS.time():
            results = await self._checker.check(
                self._roots.tree_of_call(tree.root, tree.directory),
                convert_checks.known_files(request),
            )
        _count_checks(results)
        return convert_checks.checks_message(results)

    def _batches(self, request: scan_service_pb2.ScanTreeRequest) -> _Batches:
        limit = self._rules.max_file_bytes
        rules = replace(
            self._rules,
            max_file_bytes=min(request.max_file_bytes or limit, limit),
            include=IgnoreRules(request.include),
            exclude=IgnoreRules(request.exclude),
        )
        return _Batches(self._roots, request.tree.root, request.tree.directory, rules)


class _Batches:
    """The messages of one scan; iterate once, in a thread."""

    def __init__(self, roots: Roots, root: str, directory: str, rules: ScanRules) -> None:
        self._open = roots.tree_of_call(root, directory)
        self._rules = rules
        self.cancelled = threading.Event()

    def messages(self) -> Generator[scan_service_pb2.ScanTreeResponse]:
        """Yields the messages; the last has the summary."""
        with self._open() as tree:
            for batch in TreeScan(tree, self._rules, self.cancelled.is_set).batches():
                metrics.SCAN_WARNINGS.inc(len(batch.warnings))
                if batch.summary is not None:
                    _count_scan(batch.summary)
                yield convert.scan_message(batch)


class _Scan:
    """Batches of one scan for a loop, made in threads one at a time."""

    def __init__(self, batches: _Batches) -> None:
        self._batches = batches
        self._messages = batches.messages()
        self._lock = threading.Lock()

    def next(self) -> scan_service_pb2.ScanTreeResponse | None:
        """Returns the next message, None at the end."""
        with self._lock:
            return next(self._messages, None)

    def cancel(self, executor: Executor) -> None:
        """Stops the walk and has its descriptors closed, in a thread as it may be running."""
        self._batches.cancelled.set()
        executor.submit(self._close)

    def _close(self) -> None:
        with self._lock:
            self._messages.close()


def _count_scan(summary: ScanSummary) -> None:
    metrics.SCANNED_FILES.inc(summary.files)
    for reason, count in summary.skipped.items():
        metrics.SKIPPED_FILES.labels(SkipReason(reason).name.lower()).inc(count)


def _count_checks(results: Sequence[CheckedFile]) -> None:
    verdicts = Counter(result.verdict for result in results)
    for verdict, count in verdicts.items():
        metrics.CHECKED_FILES.labels(verdict.name.lower()).inc(count)
