"""Reads pieces of files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lodestone.io.v1 import snippet_service_pb2_grpc
from services.io import convert, metrics
from services.runtime.failpoints import failpoint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lodestone.io.v1 import snippet_service_pb2
    from services.io.reader import Reader
    from services.io.roots import Roots


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
                convert.content_refs(request),
            )
        await failpoint("io.read.after")
        _count_reads(results)
        return convert.contents_message(results)


def _count_reads(results: Sequence[object]) -> None:
    failed = sum(isinstance(result, Exception) for result in results)
    metrics.READ_ITEMS.labels("failed").inc(failed)
    metrics.READ_ITEMS.labels("read").inc(len(results) - failed)
