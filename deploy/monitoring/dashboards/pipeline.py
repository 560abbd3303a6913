"""How far the index is: what waits, what is in flight, what each stage takes."""

from __future__ import annotations

from deploy.monitoring.dashboards.layout import INSTANCE, RATE, Board, Graph, Query, Row, Traces
from deploy.monitoring.dashboards.queries import quantile

_STAGE = "lodestone_indexer_stage_seconds"

PIPELINE = Board(
    uid="lodestone-pipeline",
    title="Lodestone / Pipeline",
    description="The way of a change into the index, by stage.",
    job="lodestone-indexer",
    rows=(
        Row(
            "Freshness",
            (
                Graph(
                    "Oldest node that waits",
                    "How long search has not known the oldest change.",
                    "s",
                    (Query('max(lodestone_indexer_queue_oldest_seconds{status="pending"})'),),
                    single=True,
                    width=6,
                ),
                Graph(
                    "Nodes that wait",
                    "Depth of the queue over all workspaces; 100,000 is that or more.",
                    "short",
                    (Query('max(lodestone_indexer_queue_nodes{status="pending"})'),),
                    single=True,
                    width=6,
                ),
                Graph(
                    "Nodes that failed",
                    "Nodes without a vector that nobody tries again by themselves.",
                    "short",
                    (Query('max(lodestone_indexer_queue_nodes{status="failed"})'),),
                    single=True,
                    width=6,
                ),
                Graph(
                    "Holds",
                    "Pauses and imports that hold the queue up.",
                    "short",
                    (Query("max(lodestone_indexer_queue_holds)"),),
                    single=True,
                    width=6,
                ),
                Graph(
                    "Live workspaces",
                    "From a change of a file to the end of the run that indexed it.",
                    "s",
                    (
                        Query(quantile(0.5, "lodestone_indexer_freshness_seconds"), "median"),
                        Query(quantile(0.95, "lodestone_indexer_freshness_seconds"), "95th"),
                    ),
                ),
                Graph(
                    "Runs of watchers",
                    "Runs over what changed, and over whole trees, each hour.",
                    "short",
                    (
                        Query(
                            "sum by (trigger) (increase(lodestone_indexer_live_runs_total"
                            f"{{{INSTANCE}}}[1h]))",
                            "{{trigger}}",
                        ),
                    ),
                ),
                Graph(
                    "Age of the queue",
                    "Time that the oldest node has waited, or been in work.",
                    "s",
                    (
                        Query(
                            "max by (status) (lodestone_indexer_queue_oldest_seconds)", "{{status}}"
                        ),
                    ),
                ),
                Graph(
                    "Depth of the queue",
                    "Nodes by status, as the database has them.",
                    "short",
                    (Query("max by (status) (lodestone_indexer_queue_nodes)", "{{status}}"),),
                ),
            ),
        ),
        Row(
            "Runs",
            (
                Graph(
                    "Unfinished runs",
                    "Runs that wait, are at work, or are paused.",
                    "short",
                    (Query("max by (state) (lodestone_indexer_unfinished_runs)", "{{state}}"),),
                ),
                Graph(
                    "Age of the oldest unfinished run",
                    "Time since it was asked for.",
                    "s",
                    (
                        Query(
                            "max by (state) (lodestone_indexer_unfinished_run_oldest_seconds)",
                            "{{state}}",
                        ),
                    ),
                ),
                Graph(
                    "Runs that ended",
                    "By state, each hour.",
                    "short",
                    (
                        Query(
                            "sum by (state) (increase(lodestone_indexer_runs_total"
                            f"{{{INSTANCE}}}[1h]))",
                            "{{state}}",
                        ),
                    ),
                ),
                Graph(
                    "Leases and fences",
                    "Runs taken from owners that stopped beating, and writes of old owners that "
                    "were refused, each hour.",
                    "short",
                    (
                        Query(
                            f"sum(increase(lodestone_indexer_lease_expiries_total{{{INSTANCE}}}[1h]))",
                            "leases expired",
                        ),
                        Query(
                            f"sum(increase(lodestone_indexer_fenced_writes_total{{{INSTANCE}}}[1h]))",
                            "writes fenced",
                        ),
                    ),
                ),
            ),
        ),
        Row(
            "Stages",
            (
                Graph(
                    "Batches in flight by stage",
                    "Time that batches spent in a stage, each second: how many are in it.",
                    "short",
                    (
                        Query(
                            f"sum by (stage) (rate({_STAGE}_sum{{{INSTANCE}}}{RATE}))", "{{stage}}"
                        ),
                    ),
                    stacked=True,
                ),
                Graph(
                    "Batches that ended by stage",
                    "The funnel: a stage that lags behind the one before it holds the run up.",
                    "ops",
                    (
                        Query(
                            f"sum by (stage) (rate({_STAGE}_count{{{INSTANCE}}}{RATE}))",
                            "{{stage}}",
                        ),
                    ),
                ),
                Graph(
                    "95th percentile of a batch by stage",
                    "Time of one batch in one stage.",
                    "s",
                    (
                        Query(
                            "histogram_quantile(0.95, sum by (stage, le) (rate("
                            f"{_STAGE}_bucket{{{INSTANCE}}}{RATE})))",
                            "{{stage}}",
                        ),
                    ),
                ),
                Graph(
                    "Nodes by outcome",
                    "embedded took a forward, reused had a vector in the cache.",
                    "ops",
                    (
                        Query(
                            "sum by (outcome) (rate(lodestone_indexer_nodes_total"
                            f"{{{INSTANCE}}}{RATE}))",
                            "{{outcome}}",
                        ),
                    ),
                    stacked=True,
                ),
                Traces("Runs", "Traces of runs of the chosen workspace, the newest first."),
            ),
        ),
    ),
)
