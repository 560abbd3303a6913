"""The methods of the io service: converted, counted, handed on."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from lodestone.io.v1 import (
    edit_service_pb2_grpc,
    parse_service_pb2,
    parse_service_pb2_grpc,
    root_service_pb2,
    root_service_pb2_grpc,
    scan_service_pb2_grpc,
    snippet_service_pb2_grpc,
    watch_service_pb2_grpc,
)
from services.io import convert, metrics
from services.io.content import RECIPE
from services.io.ignore import IgnoreRules
from services.io.model import SkipReason
from services.io.parser.file import ParseLimits
from services.io.parser.languages import LANGUAGES
from services.io.parser.pool import ParseJob
from services.io.scanner import ScanRules, TreeScan
from services.runtime.errors import LodestoneError, PageTokenError
from services.runtime.log import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator, Sequence
    from concurrent.futures import Executor

    from lodestone.io.v1 import scan_service_pb2, snippet_service_pb2, tree_pb2
    from services.io.model import ScanSummary
    from services.io.parser.pool import WorkerPool
    from services.io.reader import Reader
    from services.io.roots import Roots

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000
DEFAULT_MAX_TOKENS = 256


class ScanServicer(scan_service_pb2_grpc.ScanServiceServicer):
    """Tells which files a tree holds."""

    def __init__(self, roots: Roots, executor: Executor, rules: ScanRules) -> None:
        self._roots = roots
        self._executor = executor
        self._rules = rules

    async def ScanTree(
        self, request: scan_service_pb2.ScanTreeRequest, _context: Any
    ) -> AsyncIterator[scan_service_pb2.ScanTreeResponse]:
        """Streams the files of a tree; walks it batch by batch in a thread."""
        started = time.perf_counter()
        loop = asyncio.get_running_loop()
        scan = _Scan(self._batches(request))
        outcome = "cancelled"
        try:
            while (message := await loop.run_in_executor(self._executor, scan.next)) is not None:
                if message.HasField("summary"):
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
        self._open = partial(roots.open_tree, root, directory)
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


class ParseServicer(parse_service_pb2_grpc.ParseServiceServicer):
    """Cuts files into nodes."""

    def __init__(
        self,
        roots: Roots,
        executor: Executor,
        pool: WorkerPool,
        *,
        max_file_bytes: int,
        max_nodes: int,
    ) -> None:
        self._roots = roots
        self._executor = executor
        self._pool = pool
        self._max_file_bytes = max_file_bytes
        self._max_nodes = max_nodes

    async def ParseFiles(
        self, request: parse_service_pb2.ParseFilesRequest, _context: Any
    ) -> AsyncIterator[parse_service_pb2.ParseFilesResponse]:
        """Streams how each file ended, as they are ready."""
        started = time.perf_counter()
        tokens = request.max_tokens or DEFAULT_MAX_TOKENS
        root = self._roots.get(request.tree.root)
        # A tree that is gone must fail the call: told file by file it would look like deletions.
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._executor, self._check_tree, request.tree)
        job = ParseJob(
            self._roots.with_first(root),
            request.tree.directory,
            ParseLimits(self._max_file_bytes, self._max_nodes, tokens),
            tuple(convert.files_to_parse(request)),
        )
        outcomes: Counter[str] = Counter()
        nodes = 0
        try:
            async for answer in self._pool.parse(job):
                message = parse_service_pb2.ParseFilesResponse.FromString(answer)
                outcomes[message.WhichOneof("outcome") or ""] += 1
                nodes += len(message.parsed.nodes)
                yield message
        finally:
            seconds = time.perf_counter() - started
            _count_parse(outcomes, nodes, seconds)
            metrics.PARSE_WORKERS.set(len(self._pool.pids))

    def _check_tree(self, tree: tree_pb2.Tree) -> None:
        self._roots.open_tree(tree.root, tree.directory).close()

    async def ListLanguages(
        self, request: parse_service_pb2.ListLanguagesRequest, _context: Any
    ) -> parse_service_pb2.ListLanguagesResponse:
        """Lists languages by name."""
        size, after = page_size(request.page_size), request.page_token
        names = [rules.name for rules in LANGUAGES]
        if after and after not in names:
            raise PageTokenError("The page token is not of this list.")
        rest = [rules for rules in LANGUAGES if rules.name > after]
        page = rest[:size]
        return parse_service_pb2.ListLanguagesResponse(
            languages=[convert.language_message(rules) for rules in page],
            next_page_token=page[-1].name if len(rest) > size else "",
            recipe=RECIPE,
        )


def _count_parse(outcomes: Counter[str], nodes: int, seconds: float) -> None:
    for outcome, count in outcomes.items():
        metrics.PARSED_FILES.labels(outcome).inc(count)
    metrics.PARSED_NODES.inc(nodes)
    metrics.PARSE_SECONDS.observe(seconds)
    get_logger().info("files_parsed", nodes=nodes, seconds=round(seconds, 4), **outcomes)


class SnippetServicer(snippet_service_pb2_grpc.SnippetServiceServicer):
    """Reads pieces of files."""

    def __init__(self, roots: Roots, reader: Reader) -> None:
        self._roots = roots
        self._reader = reader

    async def ReadSnippets(
        self, request: snippet_service_pb2.ReadSnippetsRequest, _context: Any
    ) -> snippet_service_pb2.ReadSnippetsResponse:
        """Reads byte ranges as they are."""
        tree = request.tree
        with metrics.READ_SECONDS.time():
            results = await self._reader.read_snippets(
                lambda: self._roots.open_tree(tree.root, tree.directory),
                convert.snippet_refs(request),
            )
        _count_reads(results)
        return convert.snippets_message(results)

    async def ReadContents(
        self, request: snippet_service_pb2.ReadContentsRequest, _context: Any
    ) -> snippet_service_pb2.ReadContentsResponse:
        """Reads the texts of nodes."""
        tree = request.tree
        with metrics.READ_SECONDS.time():
            results = await self._reader.read_contents(
                lambda: self._roots.open_tree(tree.root, tree.directory),
                convert.content_refs(request),
            )
        _count_reads(results)
        return convert.contents_message(results)


def _count_reads(results: Sequence[object]) -> None:
    failed = sum(isinstance(result, Exception) for result in results)
    metrics.READ_ITEMS.labels("failed").inc(failed)
    metrics.READ_ITEMS.labels("read").inc(len(results) - failed)


class RootServicer(root_service_pb2_grpc.RootServiceServicer):
    """Tells which roots there are; adding and removing them is not built yet."""

    def __init__(self, roots: Roots) -> None:
        self._roots = roots

    async def GetRoot(
        self, request: root_service_pb2.GetRootRequest, _context: Any
    ) -> root_service_pb2.GetRootResponse:
        """Gets one root."""
        root = convert.root_message(self._roots.get(request.name))
        return root_service_pb2.GetRootResponse(root=root)

    async def ListRoots(
        self, request: root_service_pb2.ListRootsRequest, _context: Any
    ) -> root_service_pb2.ListRootsResponse:
        """Lists roots by name."""
        page, token = self._roots.page(page_size(request.page_size), request.page_token)
        return root_service_pb2.ListRootsResponse(
            roots=[convert.root_message(root) for root in page], next_page_token=token
        )


class WatchServicer(watch_service_pb2_grpc.WatchServiceServicer):
    """Watching is in the contract and not built yet: it answers UNIMPLEMENTED."""


class EditServicer(edit_service_pb2_grpc.EditServiceServicer):
    """Editing is in the contract and not built yet: it answers UNIMPLEMENTED."""


def page_size(asked: int) -> int:
    """Returns the size of a page: what was asked for, within bounds."""
    return min(asked or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
