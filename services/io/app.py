"""Builds the io service: the only place that knows all its pieces."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
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
from services.io.errors import StateFolderError
from services.io.loader import FileLoader
from services.io.names import NameRules
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
from services.io.settings import IoSettings, read_permits
from services.runtime.exits import ExitCode, StartError

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
            parse_roots(settings.roots, settings.symlink_policy),
            RootRules(tuple(map(resolved_path, settings.root_parents)), settings.max_roots),
            RootFile(settings.state_dir) if settings.state_dir else None,
        )
        self._threads = ThreadPoolExecutor(settings.read_threads, thread_name_prefix="io")
        self.pool = WorkerPool(
            WorkerOptions(
                settings.parse_workers,
                settings.parse_timeout_seconds,
                settings.parse_memory_bytes,
                settings.parse_nice,
            )
        )

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the servicers."""
        settings, roots = self._settings, self._roots
        rules = ScanRules(
            settings.max_file_bytes,
            NameRules(settings.skip_globs),
            max_plain_text_bytes=settings.max_plain_text_bytes,
        )
        scan = ScanServicer(roots, self._threads, rules)
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
        snippet = SnippetServicer(roots, reader)
        snippet_service_pb2_grpc.add_SnippetServiceServicer_to_server(snippet, server)
        root_service_pb2_grpc.add_RootServiceServicer_to_server(
            RootServicer(roots, self._threads), server
        )
        watch_service_pb2_grpc.add_WatchServiceServicer_to_server(WatchServicer(), server)
        edit_service_pb2_grpc.add_EditServiceServicer_to_server(EditServicer(), server)

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
        self.pool.start()

    async def drain(self) -> None:
        """Lets calls in flight finish: there are no watches yet."""

    async def close(self) -> None:
        """Ends the parser processes and the threads."""
        await self.pool.close()
        self._threads.shutdown(wait=True, cancel_futures=True)
