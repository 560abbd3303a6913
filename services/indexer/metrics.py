"""What the indexer counts. Labels hold no path, id or text."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

RUNS = Counter("lodestone_indexer_runs_total", "Runs that ended, by state.", ["state"])
NODES = Counter("lodestone_indexer_nodes_total", "Nodes that ended a batch.", ["outcome"])
FORWARDS = Counter("lodestone_indexer_forwards_total", "Texts that went through the model.")
STAGE_SECONDS = Histogram(
    "lodestone_indexer_stage_seconds",
    "Time of one batch in one stage.",
    ["stage"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
DISPATCH_ERRORS = Counter(
    "lodestone_indexer_dispatch_errors_total", "Times that taking a run failed unexpectedly."
)
UPKEEP_ROWS = Counter("lodestone_indexer_upkeep_rows_total", "Rows of old runs that were removed.")
SEARCHES = Counter("lodestone_indexer_searches_total", "Searches, by outcome.", ["outcome"])
SEARCH_SECONDS = Histogram(
    "lodestone_indexer_search_seconds",
    "Time of one search.",
    ["arm"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
)
