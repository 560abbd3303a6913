"""What the indexer counts. Labels hold no path, id or text."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from services.runtime.process_metrics import told_from_zero

RUNS = Counter("lodestone_indexer_runs_total", "Runs that ended, by state.", ["state"])
NODES = Counter("lodestone_indexer_nodes_total", "Nodes that left a batch.", ["outcome"])
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
UPKEEP_TASKS = (
    "frozen_sessions",
    "queue_look",
    "retention",
    "term_index",
    "unused_texts",
    "vector_index",
)
UPKEEP_ROWS = Counter("lodestone_indexer_upkeep_rows_total", "Rows of old runs that were removed.")
UPKEEP_STEPS = Counter(
    "lodestone_indexer_upkeep_steps_total",
    "Steps of the tasks that keep the database in order, by how they ended.",
    ["task", "outcome"],
)
UPKEEP_SUCCESS = Gauge(
    "lodestone_indexer_upkeep_last_success_timestamp_seconds",
    "Unix time at which the last step of a task ended well.",
    ["task"],
)
FROZEN_SESSIONS = Counter(
    "lodestone_indexer_frozen_sessions_ended_total",
    "Sessions of the database whose process was frozen in a statement, and that were ended.",
)
FRESHNESS_SECONDS = Histogram(
    "lodestone_indexer_freshness_seconds",
    "Time from a change of a file in a live workspace to the end of the run that indexed it.",
    buckets=(0.1, 0.25, 0.5, 0.75, 1, 1.5, 2.5, 5, 10, 30, 60, 300, 1800),
)
LIVE_WATCHES = Gauge("lodestone_indexer_live_watches", "Live workspaces that this process watches.")
LIVE_EVENTS = Counter(
    "lodestone_indexer_live_events_total", "Changes of files that io told, by type.", ["type"]
)
LIVE_RESCANS = Counter(
    "lodestone_indexer_live_rescans_total", "Times that io told that changes may be missing."
)
LIVE_RUNS = Counter(
    "lodestone_indexer_live_runs_total",
    "Runs that watchers queued: over changes, or over the whole tree.",
    ["trigger"],
)
LIVE_ERRORS = Counter(
    "lodestone_indexer_live_errors_total", "Times that watching failed unexpectedly."
)
SEARCHES = Counter("lodestone_indexer_searches_total", "Searches, by outcome.", ["outcome"])
SEARCH_SECONDS = Histogram(
    "lodestone_indexer_search_seconds",
    "Time of one search.",
    ["arm"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
)
RERANKS = Counter(
    "lodestone_indexer_reranks_total",
    "Searches whose first hits were to be reranked, by outcome: done, timed_out, unavailable.",
    ["outcome"],
)
MODEL_CHANGES = Counter(
    "lodestone_indexer_model_changes_total",
    "Models of workspaces that were added, activated or removed.",
    ["change"],
)

QUEUE_NODES = Gauge(
    "lodestone_indexer_queue_nodes",
    "Nodes of all workspaces by status, as the database has them, once for each model that they "
    "wait for, are in work for or failed with; 100,000 stands for that or more.",
    ["status"],
)
QUEUE_OLDEST_SECONDS = Gauge(
    "lodestone_indexer_queue_oldest_seconds",
    "Time that the oldest node has had its status; 0 when there is none.",
    ["status"],
)
UNFINISHED_RUNS = Gauge(
    "lodestone_indexer_unfinished_runs", "Runs of all workspaces that have not ended.", ["state"]
)
UNFINISHED_RUN_OLDEST_SECONDS = Gauge(
    "lodestone_indexer_unfinished_run_oldest_seconds",
    "Time since the oldest unfinished run was created; 0 when there is none.",
    ["state"],
)
QUEUE_HOLDS = Gauge(
    "lodestone_indexer_queue_holds", "Pauses and imports that hold the queue, or part of it, up."
)
LEASE_EXPIRIES = Counter(
    "lodestone_indexer_lease_expiries_total",
    "Runs whose owner stopped beating, and that this process took from it.",
)
FENCED_WRITES = Counter(
    "lodestone_indexer_fenced_writes_total",
    "Writes of this process that were refused because another one owns the run now.",
)

DATABASE_UP = Gauge(
    "lodestone_indexer_database_up", "1 when the last look at the queue got an answer, else 0."
)
DATABASE_ERRORS = Counter(
    "lodestone_indexer_database_errors_total",
    "Statements and transactions that the database failed, by kind.",
    ["kind"],
)
POOL_CONNECTIONS_USED = Gauge(
    "lodestone_indexer_pool_connections_used", "Connections that statements have at the moment."
)
POOL_CONNECTIONS_LIMIT = Gauge(
    "lodestone_indexer_pool_connections_limit", "Most connections that this process opens."
)
POOL_WAIT_SECONDS = Histogram(
    "lodestone_indexer_pool_wait_seconds",
    "Time that a statement waited for a connection, those that got none included.",
    buckets=(0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)

told_from_zero(RUNS, "succeeded", "succeeded_with_warnings", "failed", "cancelled", "stale")
told_from_zero(NODES, "embedded", "reused", "failed", "retried")
told_from_zero(SEARCHES, "found", "empty", "error")
told_from_zero(RERANKS, "done", "timed_out", "unavailable")
told_from_zero(LIVE_RUNS, "changes", "reconcile")
told_from_zero(DATABASE_ERRORS, "unavailable", "disk_full", "bad_value")
for _task in UPKEEP_TASKS:
    for _outcome in ("done", "nothing", "unavailable", "failed"):
        UPKEEP_STEPS.labels(_task, _outcome)
