"""Builds the io service: the only place that knows all its pieces."""

from __future__ import annotations

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
from services.io.names import NameRules
from services.io.origins import Origins
from services.io.parser.pool import WorkerOptions, WorkerPool
from services.io.reader import Reader
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
        self._roots = Roots(parse_roots(settings.roots, settings.symlink_policy))
        self._origins = Origins()
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
        reader = Reader(
            self._threads,
            permits=read_permits(settings),
            max_file_bytes=settings.max_file_bytes,
            max_answer_bytes=settings.max_answer_bytes,
        )
        scan_service_pb2_grpc.add_ScanServiceServicer_to_server(scan, server)
        parse_service_pb2_grpc.add_ParseServiceServicer_to_server(parse, server)
        snippet = SnippetServicer(roots, reader)
        snippet_service_pb2_grpc.add_SnippetServiceServicer_to_server(snippet, server)
        root_service_pb2_grpc.add_RootServiceServicer_to_server(RootServicer(roots), server)
        self._watchers = Watchers(roots.open_tree, rules, self._origins, watch_options(settings))
        watch = WatchServicer(self._watchers)
        watch_service_pb2_grpc.add_WatchServiceServicer_to_server(watch, server)
        edit_service_pb2_grpc.add_EditServiceServicer_to_server(EditServicer(), server)

    async def start(self) -> None:
        """Starts the parser processes in the background: scans and reads need none."""
        self.pool.start()

    async def drain(self) -> None:
        """Ends the watches, which would not end by themselves; other calls in flight finish."""
        if self._watchers is not None:
            self._watchers.drain()

    async def close(self) -> None:
        """Ends the watches, the parser processes and the threads."""
        if self._watchers is not None:
            await self._watchers.close()
        await self.pool.close()
        self._threads.shutdown(wait=True, cancel_futures=True)
