"""Tells of a search whose hits were to be reranked and were not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lodestone.indexer.v1 import search_service_pb2 as search_pb2
from services.cli.terminal import note

if TYPE_CHECKING:
    from collections.abc import Mapping

_WHY: Mapping[search_pb2.Reranking.ValueType, str] = {
    search_pb2.RERANKING_TIMED_OUT: (
        "Not reranked: it took more than LODESTONE_INDEXER_RERANK_BUDGET_MS."
    ),
    search_pb2.RERANKING_UNAVAILABLE: (
        "Not reranked: there is no reranker that answers (LODESTONE_EMBED_RERANKER and "
        "LODESTONE_INDEXER_RERANK_TOP)."
    ),
}


def tell_reranking(reranking: search_pb2.Reranking.ValueType) -> None:
    """Prints a line on standard error when the hits stand as without a reranker."""
    if reranking in _WHY:
        note(_WHY[reranking])
