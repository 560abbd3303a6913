"""Searches: how many, how they end, where their time goes."""

from __future__ import annotations

from deploy.monitoring.dashboards.layout import INSTANCE, Board, Graph, Query, Row
from deploy.monitoring.dashboards.queries import quantile, rate

SEARCH = Board(
    uid="lodestone-search",
    title="Lodestone / Search",
    description="Searches: how many, how they end, where their time goes.",
    job="lodestone-indexer",
    rows=(
        Row(
            "Searches",
            (
                Graph(
                    "Searches by outcome",
                    "Searches each second.",
                    "ops",
                    (Query(rate("lodestone_indexer_searches_total", "outcome"), "{{outcome}}"),),
                ),
                Graph(
                    "Time of a search",
                    "Of the whole call.",
                    "s",
                    tuple(
                        Query(
                            quantile(
                                share,
                                "grpc_server_handling_seconds",
                                "",
                                f'{INSTANCE},grpc_method="SearchNodes"',
                            ),
                            name,
                        )
                        for share, name in ((0.5, "median"), (0.95, "95th"), (0.99, "99th"))
                    ),
                ),
                Graph(
                    "Parts of a search",
                    "95th percentile by part; both arms run at once.",
                    "s",
                    (Query(quantile(0.95, "lodestone_indexer_search_seconds", "arm"), "{{arm}}"),),
                ),
                Graph(
                    "Reranking by outcome",
                    "Searches each second whose first hits were to be reranked.",
                    "ops",
                    (Query(rate("lodestone_indexer_reranks_total", "outcome"), "{{outcome}}"),),
                ),
                Graph(
                    "Queries in embed's queue",
                    "Questions that wait for the model.",
                    "short",
                    (Query('sum(lodestone_embed_queued_texts{lane="interactive"})', "waiting"),),
                ),
            ),
        ),
    ),
)
