"""Reads pieces of files."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from lodestone.io.v1 import snippet_service_pb2_grpc
from services.io import convert, metrics
from services.runtime.failpoints import failpoint

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Executor

    from lodestone.io.v1 import snippet_service_pb2
    from services.io.model import ContentRef
    from services.io.reader import Reader
    from services.io.roots import Roots

FEW_PIECES = 2000
"""Most pieces of texts in a request that the loop itself takes apart, in 3 ms; a message may name
millions."""


class SnippetServicer(snippet_service_pb2_grpc.SnippetServiceServicer):
    """Reads pieces of files."""

    def __init__(self, roots: Roots, reader: Reader, executor: Executor) -> None:
        self._roots = roots
        self._reader = reader
        self._executor = executor

    async def ReadSnippets(
        self, request: snippet_service_pb2.ReadSnippetsRequest, _context: Any
    ) -> snippet_service_pb2.ReadSnippetsResponse:
        """Reads byte ranges as they are."""
        tree = request.tree
        with metrics.READ_SECONDS.time():
            results = await self._reader.read_snippets(
                self._roots.tree_of_call(tree.root, tree.directory),
                convert.snippet_refs(request),
            )
        _count_reads(results)
        return convert.snippets_message(results)

    async def ReadContents(
        self, request: snippet_service_pb2.ReadContentsRequest, _context: Any
    ) -> snippet_service_pb2.ReadContentsResponse:
        """Reads the texts of nodes."""
        await failpoint("io.read.before")
        tree = request.tree
        with metrics.READ_SECONDS.time():
            results = await self._reader.read_contents(
                self._roots.tree_of_call(tree.root, tree.directory),
                await self._content_refs(request),
            )
        await failpoint("io.read.after")
        _count_reads(results)
        return convert.contents_message(results)

    async def _content_refs(
        self, request: snippet_service_pb2.ReadContentsRequest
    ) -> list[ContentRef]:
        if sum(len(ref.segments) for ref in request.refs) <= FEW_PIECES:
            return convert.content_refs(request)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, convert.content_refs, request)


def _count_reads(results: Sequence[object]) -> None:
    failed = sum(isinstance(result, Exception) for result in results)
    metrics.READ_ITEMS.labels("failed").inc(failed)
    metrics.READ_ITEMS.labels("read").inc(len(results) - failed)
