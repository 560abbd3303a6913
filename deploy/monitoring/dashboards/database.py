"""PostgreSQL as the indexers see it."""

from __future__ import annotations

from deploy.monitoring.dashboards.layout import INSTANCE, Board, Graph, Query, Row
from deploy.monitoring.dashboards.queries import quantile, rate


def _steps(outcome: str) -> str:
    metric = f'lodestone_indexer_upkeep_steps_total{{{INSTANCE},outcome="{outcome}"}}'
    return f"sum by (task) (increase({metric}[1h]))"


DATABASE = Board(
    uid="lodestone-database",
    title="Lodestone / Database",
    description="PostgreSQL as the indexers see it.",
    job="lodestone-indexer",
    rows=(
        Row(
            "Connections",
            (
                Graph(
                    "Use of the pool",
                    "Share of an indexer's connections that statements have.",
                    "percentunit",
                    (
                        Query(
                            f"lodestone_indexer_pool_connections_used{{{INSTANCE}}} / "
                            f"lodestone_indexer_pool_connections_limit{{{INSTANCE}}}"
                        ),
                    ),
                ),
                Graph(
                    "Wait for a connection",
                    "99th percentile.",
                    "s",
                    (
                        Query(
                            quantile(0.99, "lodestone_indexer_pool_wait_seconds", "instance"),
                        ),
                    ),
                ),
                Graph(
                    "Statements and transactions",
                    "Connections taken each second.",
                    "ops",
                    (Query(rate("lodestone_indexer_pool_wait_seconds_count", "instance")),),
                ),
                Graph(
                    "Errors",
                    "By kind, each hour.",
                    "short",
                    (
                        Query(
                            "sum by (kind) (increase(lodestone_indexer_database_errors_total"
                            f"{{{INSTANCE}}}[1h]))",
                            "{{kind}}",
                        ),
                    ),
                ),
                Graph(
                    "Reachable",
                    "1 while an indexer's last look at the queue got an answer.",
                    "short",
                    (Query(f"lodestone_indexer_database_up{{{INSTANCE}}}"),),
                ),
                Graph(
                    "Time of a commit and of a plan",
                    "95th percentile of the transactions of a batch.",
                    "s",
                    (
                        Query(
                            quantile(
                                0.95,
                                "lodestone_indexer_stage_seconds",
                                "stage",
                                f'{INSTANCE},stage=~"commit|plan"',
                            ),
                            "{{stage}}",
                        ),
                    ),
                ),
            ),
        ),
        Row(
            "Upkeep",
            (
                Graph(
                    "Steps that did something",
                    "Each hour: old runs removed, indexes over vectors or blocks of terms made.",
                    "short",
                    (Query(_steps("done"), "{{task}}"),),
                ),
                Graph(
                    "Steps that failed",
                    "Each hour, by task; those that did not reach the database are not among them.",
                    "short",
                    (Query(_steps("failed"), "{{task}}"),),
                ),
                Graph(
                    "Time since the last success",
                    "The latest indexer of each task.",
                    "s",
                    (
                        Query(
                            "time() - min by (task) "
                            "(lodestone_indexer_upkeep_last_success_timestamp_seconds"
                            f"{{{INSTANCE}}})",
                            "{{task}}",
                        ),
                    ),
                ),
                Graph(
                    "Frozen sessions",
                    "Sessions of processes that stood still in a statement, ended each hour.",
                    "short",
                    (
                        Query(
                            "sum by (instance) (increase("
                            f"lodestone_indexer_frozen_sessions_ended_total{{{INSTANCE}}}[1h]))"
                        ),
                    ),
                ),
            ),
        ),
    ),
)
