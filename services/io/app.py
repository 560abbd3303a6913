"""Builds the io service: the only place that knows all its pieces."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from lodestone.io.v1 import (
    edit_service_pb2_grpc,
    parse_service_pb2_grpc,
    root_service_pb2_grpc,
    scan_service_pb2_grpc,
    snippet_service_pb2_grpc,
    watch_service_pb2_grpc,
)
from services.io.cache import FileCache
from services.io.checker import Checker
from services.io.edit_journal import DiskJournal
from services.io.errors import StateFolderError
from services.io.journal_room import JournalLimits
from services.io.journal_upkeep import JournalUpkeep
from services.io.loader import FileLoader
from services.io.memory_journal import MemoryJournal
from services.io.names import NameRules
from services.io.origins import Origins
from services.io.parser.pool import WorkerOptions, WorkerPool
from services.io.paths import resolved_path
from services.io.reader import Reader
from services.io.root_file import RootFile
from services.io.root_rules import RootRules
from services.io.roots import Roots, parse_roots
from services.io.scanner import ScanRules
from services.io.servicers.edits import EditServicer
from services.io.servicers.parse import ParseServicer
from services.io.servicers.roots import RootServicer
from services.io.servicers.scan import ScanServicer
from services.io.servicers.snippets import SnippetServicer
from services.io.servicers.watch import WatchServicer
from services.io.settings import IoSettings, read_permits, watch_options
from services.io.watch.watchers import Watchers
from services.io.writer import Writer, WriteRules
from services.runtime.exits import ExitCode, StartError
from services.runtime.garbage import collect_less

if TYPE_CHECKING:
    import grpc


class IoApp:
    """The io service, for `services.runtime.server.run_service`."""

    name = "io"
    service_names = (
        "lodestone.io.v1.EditService",
        "lodestone.io.v1.ParseService",
        "lodestone.io.v1.RootService",
        "lodestone.io.v1.ScanService",
        "lodestone.io.v1.SnippetService",
        "lodestone.io.v1.WatchService",
    )

    def __init__(self, settings: IoSettings) -> None:
        self._settings = settings
        self._roots = Roots(
            parse_roots(settings.roots, settings.symlink_policy, read_only=settings.read_only),
            RootRules(tuple(map(resolved_path, settings.root_parents)), settings.max_roots),
            RootFile(settings.state_dir) if settings.state_dir else None,
        )
        self._watchers: Watchers | None = None
        self._threads = ThreadPoolExecutor(settings.read_threads, thread_name_prefix="io")
        self.pool = WorkerPool(
            WorkerOptions(
                settings.parse_workers,
                settings.parse_timeout_seconds,
                settings.parse_memory_bytes,
                settings.parse_nice,
            )
        )

        self._origins = Origins()
        self._write_threads = ThreadPoolExecutor(
            settings.write_threads, thread_name_prefix="io-write"
        )
        journal = make_journal(settings)
        self._upkeep = JournalUpkeep(journal, self._roots, self._write_threads)
        self._writer = Writer(
            self._roots, journal, self._origins, self._write_threads, write_rules(settings)
        )

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the servicers."""
        settings, roots = self._settings, self._roots
        rules = ScanRules(
            settings.max_file_bytes,
            NameRules(settings.skip_globs),
            max_plain_text_bytes=settings.max_plain_text_bytes,
        )
        checker = Checker(self._threads, max_file_bytes=settings.max_file_bytes)
        scan = ScanServicer(roots, self._threads, rules, checker)
        parse = ParseServicer(
            roots,
            self._threads,
            self.pool,
            max_file_bytes=settings.max_file_bytes,
            max_nodes=settings.max_nodes_per_file,
        )
        cache = FileCache(settings.cache_bytes) if settings.cache_bytes else None
        reader = Reader(
            self._threads,
            FileLoader(settings.max_file_bytes, cache),
            permits=read_permits(settings),
            max_answer_bytes=settings.max_answer_bytes,
        )
        scan_service_pb2_grpc.add_ScanServiceServicer_to_server(scan, server)
        parse_service_pb2_grpc.add_ParseServiceServicer_to_server(parse, server)
        snippet = SnippetServicer(roots, reader, self._threads)
        snippet_service_pb2_grpc.add_SnippetServiceServicer_to_server(snippet, server)
        root_service_pb2_grpc.add_RootServiceServicer_to_server(
            RootServicer(roots, self._threads), server
        )
        self._watchers = Watchers(roots.open_tree, rules, self._origins, watch_options(settings))
        watch = WatchServicer(self._watchers)
        watch_service_pb2_grpc.add_WatchServiceServicer_to_server(watch, server)
        edit_service_pb2_grpc.add_EditServiceServicer_to_server(EditServicer(self._writer), server)

    async def start(self) -> None:
        """Starts the parser processes in the background: scans and reads need none.

        Raises:
            StartError: what callers added before cannot be read.
        """
        try:
            await asyncio.get_running_loop().run_in_executor(self._threads, self._roots.load)
        except StateFolderError as error:
            folder = f"LODESTONE_IO_STATE_DIR={self._settings.state_dir}"
            raise StartError(ExitCode.DATA_FOLDER, f"{folder}: {error.message}") from None
        collect_less()
        self.pool.start()
        self._upkeep.start()

    async def drain(self) -> None:
        """Ends the watches, which would not end by themselves; other calls in flight finish."""
        if self._watchers is not None:
            self._watchers.drain()

    async def close(self) -> None:
        """Ends the watches, the parser processes and the threads."""
        if self._watchers is not None:
            await self._watchers.close()
        await self._upkeep.close()
        await self._writer.close()
        await self.pool.close()
        for threads in (self._write_threads, self._threads):
            # Not in the loop: one may wait for a disk that does not answer.
            await asyncio.to_thread(threads.shutdown, wait=True, cancel_futures=True)


def make_journal(settings: IoSettings) -> DiskJournal | MemoryJournal:
    """Returns the journal of writes: in the state folder, or in memory where there is none."""
    limits = JournalLimits(settings.journal_entries, settings.journal_bytes)
    if not settings.state_dir:
        return MemoryJournal(limits)
    return DiskJournal(Path(settings.state_dir) / "edits", limits)


def write_rules(settings: IoSettings) -> WriteRules:
    """Returns the limits of writing."""
    return WriteRules(
        settings.max_file_bytes,
        settings.write_lock_seconds,
        read_only=settings.read_only,
    )
