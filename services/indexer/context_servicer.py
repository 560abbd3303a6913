"""The search service's methods that give text: contexts, and lines of files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lodestone.indexer.v1 import search_service_pb2
from services.indexer import convert_graph, convert_search
from services.indexer.lines import cut_lines
from services.indexer.live_files import Bytes
from services.indexer.pages import page_size
from services.indexer.search.engine import FoundText
from services.runtime.errors import InvalidRequestError, NotFoundError

if TYPE_CHECKING:
    from services.indexer.context.builder import Context, ContextBuilder
    from services.indexer.context.pack import Piece
    from services.indexer.live_files import LiveFiles
    from services.indexer.search_requests import SearchRequests
    from services.indexer.storage.indexed_files import IndexedFiles

_FRESHNESS = search_service_pb2.NodeHit.Freshness


class ContextServicer:
    """Methods of `SearchService`, for its servicer to inherit."""

    def __init__(
        self,
        requests: SearchRequests,
        builder: ContextBuilder,
        files: IndexedFiles,
        live: LiveFiles,
    ) -> None:
        self._requests = requests
        self._builder = builder
        self._files = files
        self._live = live

    async def BuildContext(
        self, request: search_service_pb2.BuildContextRequest, context: Any
    ) -> search_service_pb2.BuildContextResponse:
        search = request.search
        if search.page_token:
            raise InvalidRequestError(
                "A context has no pages.", metadata={"search.page_token": "must be empty"}
            )
        workspaces = await self._requests.workspaces(search)
        built = await self._builder.build(
            workspaces,
            search.query,
            await self._requests.filter_of(search),
            candidates=page_size(search.page_size),
            token_budget=request.token_budget,
            allow_signatures=request.allow_signatures,
            rerank=convert_graph.rerank_of(search),
        )
        name, last = workspaces[0].name, workspaces[0].last_run_id
        return _context_to_proto(built, f"workspaces/{name}/indexRuns/{last}" if last else "")

    async def ReadLines(
        self, request: search_service_pb2.ReadLinesRequest, context: Any
    ) -> search_service_pb2.ReadLinesResponse:
        if request.end_line and request.end_line < request.start_line:
            raise InvalidRequestError(
                "The last line is before the first.", metadata={"end_line": "before start_line"}
            )
        if "\0" in request.path:
            raise InvalidRequestError("The path holds NUL.", metadata={"path": "holds NUL"})
        workspace = await self._requests.workspace(request.parent)
        known = await self._files.get(workspace.id, request.path)
        if known is None:
            raise NotFoundError(
                "The index holds no file of this path.", metadata={"resource": request.path}
            )
        before = Bytes(known.digest, known.size)
        text, now = await self._live.read(workspace.tree, request.path, before)
        lines = cut_lines(text, request.start_line, request.end_line)
        fresh = now.digest == known.digest
        return search_service_pb2.ReadLinesResponse(
            text=lines.text,
            start_line=lines.start,
            end_line=lines.end,
            line_count=lines.line_count,
            file_digest=now.digest,
            freshness=_FRESHNESS.FRESHNESS_FRESH if fresh else _FRESHNESS.FRESHNESS_CHANGED,
            language=known.language,
        )


def _context_to_proto(built: Context, run: str) -> search_service_pb2.BuildContextResponse:
    pack = built.pack
    hits = [
        convert_search.hit_to_proto(FoundText(hit, "", None))
        for piece in pack.pieces
        for hit in piece.hits
    ]
    return search_service_pb2.BuildContextResponse(
        text=pack.text,
        hits=hits,
        tokens=pack.tokens,
        pieces=[_piece_to_proto(piece) for piece in pack.pieces],
        stale=built.stale,
        duplicates=pack.duplicates,
        over_budget=pack.over_budget,
        index_run=run,
        reranking=convert_graph.reranking_to_proto(built.reranking),
    )


def _piece_to_proto(piece: Piece) -> search_service_pb2.ContextPiece:
    return search_service_pb2.ContextPiece(
        path=piece.path,
        start_line=piece.start_line,
        end_line=piece.end_line,
        node_ids=[hit.node_id for hit in piece.hits],
        signature_only=piece.signature_only,
        start_byte=piece.start_byte,
        end_byte=piece.end_byte,
        file_digest=piece.hits[0].digest,
        workspace=f"workspaces/{piece.hits[0].workspace_name}",
    )
