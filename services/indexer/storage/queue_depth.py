"""How deep and how old the queue is, for metrics: bounded looks, the same from every replica."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.indexer import metrics
from services.indexer.transitions import FINISHED_RUN_STATES, NodeStatus, RunState
from services.runtime.errors import DependencyUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import asyncpg
    from prometheus_client import Gauge

    from services.indexer.storage.database import Database

MOST_ROWS = 100_000
"""Rows that are looked at of each status: a longer queue costs no more."""

_STATUSES = (NodeStatus.PENDING, NodeStatus.PROCESSING, NodeStatus.FAILED)
"""Each has a partial index; embedded nodes are not counted, as there may be millions."""

_QUEUES = {"nodes": "workspace_id, id", "model_nodes": "workspace_id, model_id, node_id"}
"""The nodes' own queue and those of models beside the active one, each with its key."""

_LOOKS = " UNION ALL ".join(
    f"(SELECT '{status}' AS name, status_since FROM {queue} WHERE status = '{status}' "
    f"ORDER BY {key} LIMIT $1)"
    for status in _STATUSES
    for queue, key in _QUEUES.items()
)
NODES = (
    "SELECT name, least(count(*), $1) AS count, "
    "coalesce(extract(epoch FROM now() - min(status_since)), 0)::float8 AS oldest "
    f"FROM ({_LOOKS}) looks GROUP BY name"
)
RUNS = """
SELECT state AS name, count(*) AS count,
  extract(epoch FROM now() - min(created_at))::float8 AS oldest
FROM (SELECT state, created_at FROM runs WHERE finished_at IS NULL LIMIT $1) AS unfinished
GROUP BY state
"""
_HOLDS = """
SELECT count(*) FROM queue_holds h WHERE (expires_at IS NULL OR expires_at > now())
  AND (workspace_id = 0 OR EXISTS (SELECT 1 FROM workspaces w WHERE w.id = h.workspace_id))
"""
"""One that came as its workspace was deleted holds nothing."""

_UNFINISHED = [state for state in RunState if state not in FINISHED_RUN_STATES]


class QueueDepth:
    """Looks at the queue of all workspaces, and tells it in gauges."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def look(self) -> int:
        """Looks once; returns 0, as there is never more to do at once.

        Raises:
            DependencyUnavailableError: the database does not answer; the gauges stay as they are.
        """
        try:
            async with self._database.connection() as connection:
                nodes = await connection.fetch(NODES, MOST_ROWS)
                runs = await connection.fetch(RUNS, MOST_ROWS)
                holds = await connection.fetchval(_HOLDS)
        except DependencyUnavailableError:
            metrics.DATABASE_UP.set(0)
            raise
        metrics.DATABASE_UP.set(1)
        _tell(nodes, _STATUSES, metrics.QUEUE_NODES, metrics.QUEUE_OLDEST_SECONDS)
        _tell(runs, _UNFINISHED, metrics.UNFINISHED_RUNS, metrics.UNFINISHED_RUN_OLDEST_SECONDS)
        metrics.QUEUE_HOLDS.set(holds)
        return 0


def _tell(
    rows: Iterable[asyncpg.Record],
    names: Iterable[str],
    counts: Gauge,
    ages: Gauge,
) -> None:
    """Sets the gauges of all names: those that no row has are 0."""
    found = {row["name"]: row for row in rows}
    for name in names:
        row = found.get(name)
        counts.labels(name).set(row["count"] if row else 0)
        ages.labels(name).set(row["oldest"] if row else 0)
