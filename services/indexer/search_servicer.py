"""The search service: finds code, tells why, and walks the graph around it."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any

from lodestone.indexer.v1 import search_service_pb2, search_service_pb2_grpc
from services.indexer import convert_graph, convert_search, metrics
from services.indexer.context.builder import ContextBuilder
from services.indexer.context_servicer import ContextServicer
from services.indexer.model import NodeId
from services.indexer.pages import page_size
from services.indexer.rest_tokens import MOST_ROWS, make_rest_token, read_rest_token
from services.indexer.search.reranking import RerankOutcome
from services.indexer.search.terms import dotted
from services.runtime.errors import InvalidRequestError
from services.runtime.yielding import mapped

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from services.indexer.graph.engine import GraphEngine
    from services.indexer.live_files import LiveFiles
    from services.indexer.model import Workspace
    from services.indexer.search.engine import SearchEngine, SearchTrace
    from services.indexer.search.explain import Explainer
    from services.indexer.search.model import Hit
    from services.indexer.search.truth import Truth
    from services.indexer.search_requests import SearchRequests
    from services.indexer.storage.indexed_files import IndexedFiles

_DEFAULT_HITS = 10
MOST_TEXT_BYTES = 32 << 20
"""Bytes of the texts of a page, as many as io gives by default for one workspace."""


class SearchServicer(ContextServicer, search_service_pb2_grpc.SearchServiceServicer):
    """Finds code."""

    def __init__(
        self,
        requests: SearchRequests,
        engine: SearchEngine,
        *,
        files: IndexedFiles,
        live: LiveFiles,
        graph: GraphEngine,
        truth: Truth,
        explainer: Explainer,
    ) -> None:
        super().__init__(requests, ContextBuilder(engine), files, live)
        self._engine = engine
        self._graph = graph
        self._truth = truth
        self._explainer = explainer

    async def SearchNodes(
        self, request: search_service_pb2.SearchNodesRequest, context: Any
    ) -> search_service_pb2.SearchNodesResponse:
        try:
            response = await self._search(request)
        except Exception:
            metrics.SEARCHES.labels("error").inc()
            raise
        metrics.SEARCHES.labels("found" if response.hits else "empty").inc()
        return response

    async def _search(
        self, request: search_service_pb2.SearchNodesRequest
    ) -> search_service_pb2.SearchNodesResponse:
        workspaces = await self._requests.workspaces(request)
        if request.explain and request.page_token:
            raise InvalidRequestError(
                "Later pages are not explained.", metadata={"explain": "not with page_token"}
            )
        page, token, trace = await self._page(workspaces, request)
        name, last = workspaces[0].name, workspaces[0].last_run_id
        response = search_service_pb2.SearchNodesResponse(
            hits=await self._shown(workspaces, request, page),
            next_page_token=token,
            index_run=f"workspaces/{name}/indexRuns/{last}" if last else "",
            reranking=convert_graph.reranking_to_proto(
                RerankOutcome.NONE if trace is None else trace.reranked.outcome
            ),
        )
        if request.explain and trace is not None:
            told = await self._explainer.explain_trace(
                workspaces, request.query, trace, [hit.node_id for hit in page]
            )
            response.explanations.extend(map(convert_graph.explanation_to_proto, told))
        if request.HasField("expand"):
            spec = convert_graph.walk_of_hits(request.expand)
            for workspace, own in _by_workspace(workspaces, page):
                around = await self._graph.around_hits(workspace, spec, own)
                nodes = await self._graph.shown(workspace, around.distances)
                response.expanded.extend(convert_graph.hits_to_proto(nodes))
                response.edges.extend(convert_graph.edges_to_proto(around))
                response.expansion_truncated |= around.truncated
        return response

    async def _page(
        self, workspaces: Sequence[Workspace], request: search_service_pb2.SearchNodesRequest
    ) -> tuple[list[Hit], str, SearchTrace | None]:
        """Returns the hits of a page, the token of the next, and the search on the first page.

        The first page decides the order of all: what is left is in the token.
        """
        key = (
            request.parent,
            *sorted(request.other_parents),
            request.query,
            request.filter.SerializeToString().hex(),
        )
        only = await self._requests.filter_of(request)
        size = page_size(request.page_size, _DEFAULT_HITS)
        found = None
        if request.page_token:
            (rest,) = read_rest_token(request.page_token, (2,), *key)
            scores = {NodeId(int(node)): score for node, score in rest[:size]}
            places = {node: place for place, node in enumerate(scores)}
            hits = await self._engine.hits(workspaces, scores, only)
            page = sorted(hits, key=lambda hit: places[hit.node_id])
            left = rest[size:]
        else:
            found = await self._engine.trace(
                workspaces,
                request.query,
                only,
                rerank=convert_graph.rerank_of(request),
                at_least=size,
            )
            page = found.hits[:size]
            left = [(hit.node_id, hit.score) for hit in found.hits[size : size + MOST_ROWS]]
        return page, make_rest_token([left], *key) if left else "", found

    async def _shown(
        self,
        workspaces: Sequence[Workspace],
        request: search_service_pb2.SearchNodesRequest,
        page: Sequence[Hit],
    ) -> list[search_service_pb2.NodeHit]:
        """Returns hits with what was asked of them: their text, whether they are still there.

        Those behind the first with whose text there are too many bytes come without.
        """
        plain = convert_graph.hits_to_proto(page)
        if not (request.verify or request.with_text):
            return plain
        shown = {hit.node_id: item for hit, item in zip(page, plain, strict=True)}
        for workspace, own in _by_workspace(workspaces, _with_room(page)):
            messages = await self._shown_of(workspace, request, own)
            shown |= {hit.node_id: item for hit, item in zip(own, messages, strict=True)}
        return [shown[hit.node_id] for hit in page]

    async def _shown_of(
        self,
        workspace: Workspace,
        request: search_service_pb2.SearchNodesRequest,
        page: list[Hit],
    ) -> Sequence[search_service_pb2.NodeHit]:
        if request.verify:
            verified = await self._truth.verify(workspace, page)
            return await mapped(
                lambda item: convert_graph.verified_to_proto(
                    item,
                    request.query,
                    with_text=request.with_text,
                    signatures=request.signatures,
                ),
                verified,
            )
        found = await self._engine.read(workspace, page)
        return await mapped(
            lambda item: convert_search.hit_to_proto(
                item.headed() if request.signatures else item, request.query
            ),
            found,
        )

    async def ExpandNodes(
        self, request: search_service_pb2.ExpandNodesRequest, context: Any
    ) -> search_service_pb2.ExpandNodesResponse:
        workspace = await self._requests.workspace(request.parent)
        key = convert_graph.walk_key(request)
        response = search_service_pb2.ExpandNodesResponse()
        if request.page_token:
            around = convert_graph.surroundings_of(request.page_token, key)
        else:
            around = await self._graph.around(
                workspace,
                convert_graph.walk_of(request),
                node_ids=[NodeId(node) for node in request.node_ids],
                symbols=list(map(dotted, request.symbols)),
            )
            starts = await self._graph.shown(workspace, dict.fromkeys(around.starts, 1))
            response.starts.extend(convert_graph.hits_to_proto(starts))
        page, rest = around.page(page_size(request.page_size))
        nodes = await self._graph.shown(workspace, page.distances)
        response.nodes.extend(convert_graph.hits_to_proto(nodes))
        response.edges.extend(convert_graph.edges_to_proto(page))
        response.next_page_token = convert_graph.rest_token(rest, key)
        response.truncated = around.truncated
        return response

    async def ExplainHit(
        self, request: search_service_pb2.ExplainHitRequest, context: Any
    ) -> search_service_pb2.ExplainHitResponse:
        search = request.search
        workspaces = await self._requests.workspaces(search)
        only = await self._requests.filter_of(search)
        explanation = await self._explainer.explain(
            workspaces,
            search.query,
            only,
            NodeId(request.node_id),
            rerank=convert_graph.rerank_of(search),
            at_least=page_size(search.page_size, _DEFAULT_HITS),
        )
        return convert_graph.explanation_to_proto(explanation)


def _with_room(page: Sequence[Hit]) -> list[Hit]:
    """Returns the first hits of a page, whose texts together are no more than one answer holds."""
    ends = accumulate(hit.end_byte - hit.start_byte for hit in page)
    return [hit for hit, end in zip(page, ends, strict=True) if end <= MOST_TEXT_BYTES]


def _by_workspace(
    workspaces: Sequence[Workspace], hits: Sequence[Hit]
) -> Iterator[tuple[Workspace, list[Hit]]]:
    """Yields each workspace that has some of the hits, with these in their order."""
    for workspace in workspaces:
        if own := [hit for hit in hits if hit.workspace_name == workspace.name]:
            yield workspace, own
