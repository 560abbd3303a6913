"""Rate, errors and duration of all services, and what is left of the error budget."""

from __future__ import annotations

from deploy.monitoring.dashboards.layout import INSTANCE, RATE, Board, Graph, Query, Row, Traces
from deploy.monitoring.dashboards.queries import quantile, rate

_HANDLED = f"grpc_server_handled_total{{{INSTANCE}}}"
_OBJECTIVE = 0.005
"""Share of calls that may fail with a fault of the server; alerts.yaml has the same."""

OVERVIEW = Board(
    uid="lodestone-overview",
    title="Lodestone / Overview",
    description="Rate, errors and duration of all services, and what is left of the error budget.",
    job="lodestone-.+",
    rows=(
        Row(
            "Error budget",
            (
                Graph(
                    "Burn, one hour",
                    "How many times faster than allowed (0.5 % of calls) the budget is used.",
                    "x",
                    (
                        Query(
                            f"lodestone:grpc_server_errors:ratio_rate1h / {_OBJECTIVE}", "{{job}}"
                        ),
                    ),
                    single=True,
                    width=8,
                ),
                Graph(
                    "Burn, six hours",
                    "As before, over six hours.",
                    "x",
                    (
                        Query(
                            f"lodestone:grpc_server_errors:ratio_rate6h / {_OBJECTIVE}", "{{job}}"
                        ),
                    ),
                    single=True,
                    width=8,
                ),
                Graph(
                    "Processes",
                    "Processes that are scraped, by service and version.",
                    "short",
                    (
                        Query(
                            "count by (service, version) (lodestone_build_info)",
                            "{{service}} {{version}}",
                        ),
                    ),
                    single=True,
                    width=8,
                ),
            ),
        ),
        Row(
            "Calls",
            (
                Graph(
                    "Rate",
                    "Calls that ended each second.",
                    "reqps",
                    (Query(f"sum by (job) (rate({_HANDLED}{RATE}))", "{{job}}"),),
                    width=8,
                ),
                Graph(
                    "Errors",
                    "Share of calls that ended with a fault of the server.",
                    "percentunit",
                    (Query("lodestone:grpc_server_errors:ratio_rate5m", "{{job}}"),),
                    width=8,
                ),
                Graph(
                    "Duration",
                    "99th percentile of unary calls.",
                    "s",
                    (
                        Query(
                            quantile(
                                0.99,
                                "grpc_server_handling_seconds",
                                "job",
                                f'{INSTANCE},grpc_type="unary"',
                            ),
                            "{{job}}",
                        ),
                    ),
                    width=8,
                ),
                Graph(
                    "Calls by code",
                    "All methods together.",
                    "reqps",
                    (
                        Query(
                            f"sum by (job, grpc_code) (rate({_HANDLED}{RATE}))",
                            "{{job}} {{grpc_code}}",
                        ),
                    ),
                ),
                Graph(
                    "Slowest methods",
                    "95th percentile of the five slowest.",
                    "s",
                    (
                        Query(
                            "topk(5, "
                            + quantile(0.95, "grpc_server_handling_seconds", "grpc_method")
                            + ")",
                            "{{grpc_method}}",
                        ),
                    ),
                ),
            ),
        ),
        Row(
            "Processes",
            (
                Graph(
                    "CPU",
                    "Cores in use; children (parsers, engines) are not counted.",
                    "short",
                    (
                        Query(
                            rate("process_cpu_seconds_total", "job, instance"),
                            "{{job}} {{instance}}",
                        ),
                    ),
                ),
                Graph(
                    "Memory",
                    "Resident memory; children are not counted.",
                    "bytes",
                    (
                        Query(
                            f"process_resident_memory_bytes{{{INSTANCE}}}", "{{job}} {{instance}}"
                        ),
                    ),
                ),
                Graph(
                    "Lag of the event loop",
                    "99th percentile of how late tasks wake up.",
                    "s",
                    (
                        Query(
                            quantile(0.99, "lodestone_event_loop_lag_seconds", "job, instance"),
                            "{{job}} {{instance}}",
                        ),
                    ),
                ),
                Graph(
                    "File descriptors",
                    "Share of those that the process may open.",
                    "percentunit",
                    (
                        Query(
                            f"process_open_fds{{{INSTANCE}}} / process_max_fds{{{INSTANCE}}}",
                            "{{job}} {{instance}}",
                        ),
                    ),
                ),
                Traces("Runs", "Traces of runs of the chosen workspace, the newest first."),
            ),
        ),
    ),
)
