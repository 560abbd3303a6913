"""What is around hits in the code, and why they stand where they do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lodestone.indexer.v1 import search_service_pb2 as search_pb2
from services.client import convert, convert_graph
from services.client.calls import Calls, full_name
from services.client.errors import InvalidCallError
from services.client.graph_model import Direction, EdgeKind, Explanation, Surroundings
from services.client.model import Filter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.client.model import Hit

_ALL = Filter()
_INVALID = "INVALID_ARGUMENT"


class GraphCalls(Calls):
    """The calls that are about single hits and the code around them."""

    async def explain(
        self,
        query: str,
        hit: Hit | int,
        *,
        workspace: str = "",
        other_workspaces: Sequence[str] = (),
        limit: int = 10,
        only: Filter = _ALL,
        rerank: bool | None = None,
    ) -> Explanation:
        """Returns how a search ranks a hit, also a node that it does not find.

        It searches again: what is not as it was in the search may give another rank and score.

        Args:
            query: what was looked for.
            hit: a hit of the search, or the id of a node.
            workspace: what was searched; of a hit that is known, but of one of the others.
            other_workspaces: more that were searched with it, as in the search.
            limit: most hits of the first page, as in the search.
            only: what could be found, as in the search.
            rerank: whether the first hits are reranked, as in the search.
        """
        node = hit if isinstance(hit, int) else hit.node_id
        others = list(map(full_name, other_workspaces))
        known = "" if isinstance(hit, int) or hit.workspace in others else hit.workspace
        request = search_pb2.ExplainHitRequest(
            search=search_pb2.SearchNodesRequest(
                parent=await self._parent(workspace or known),
                query=query,
                other_parents=others,
                page_size=limit,
                filter=convert.filter_to_proto(only),
                rerank=rerank,
            ),
            node_id=node,
        )
        return convert_graph.explanation_of(await self._call(self._searches.ExplainHit, request))

    async def expand(
        self,
        hits: Sequence[Hit | int] = (),
        *,
        symbols: Sequence[str] = (),
        workspace: str = "",
        edges: Sequence[EdgeKind] = (),
        direction: Direction = Direction.BOTH,
        depth: int = 1,
        limit: int = 50,
        page_token: str = "",
    ) -> Surroundings:
        """Walks the code graph from hits: to callers, callees, the enclosing class, tests.

        Args:
            hits: hits of one workspace, or ids of nodes, at most 100.
            symbols: definitions to start from beside, by qualified name or the end of one.
            workspace: where they are; of hits that is known.
            edges: what is followed; empty follows all.
            direction: which way.
            depth: edges in a row, 1 to 5.
            limit: most nodes of the page, up to 1000.
            page_token: from the previous page; the rest must be the same.
        """
        request = search_pb2.ExpandNodesRequest(
            parent=await self._parent(workspace or _workspace_of(hits)),
            node_ids=[hit if isinstance(hit, int) else hit.node_id for hit in hits],
            symbols=symbols,
            edges=map(_number, edges),
            direction=convert_graph.DIRECTIONS[direction],
            depth=depth,
            page_size=limit,
            page_token=page_token,
        )
        return convert_graph.surroundings_of(await self._call(self._searches.ExpandNodes, request))


def _number(kind: EdgeKind) -> search_pb2.EdgeKind.ValueType:
    if kind is EdgeKind.UNKNOWN:
        raise InvalidCallError("Edges of an unknown kind cannot be asked for.", code=_INVALID)
    return convert_graph.EDGES[kind]


def _workspace_of(hits: Sequence[Hit | int]) -> str:
    """Returns the one workspace that hits name; empty when none does."""
    names = {hit.workspace for hit in hits if not isinstance(hit, int)}
    if len(names) > 1:
        raise InvalidCallError("The hits are of several workspaces.", code=_INVALID)
    return names.pop() if names else ""
