"""Holds a disturbed index to the invariants, and to one built from scratch by others."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.faults.cluster import fetch, reference_caller
from tests.support.index_rows import rows_in
from tests.support.invariants import IDLE_SECONDS, broken_rules

if TYPE_CHECKING:
    import datetime as dt

    from lodestone.indexer.v1 import index_run_service_pb2 as runs_pb2
    from tests.faults.cluster import Cluster

_SETTLE_SECONDS = 15.0
"""Time within which connections of processes that died are gone."""


async def check_rules(cluster: Cluster) -> None:
    """Fails unless the invariants hold; what dead processes left may take a moment to go."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while broken := await broken_rules(cluster.url, idle_seconds=IDLE_SECONDS):
        assert time.monotonic() < deadline, broken
        assert all(rule.startswith("I6") for rule in broken), broken
        await asyncio.sleep(0.1)


async def check_truth(cluster: Cluster, workspace: str, directory: str) -> None:
    """Fails unless an index holds what one from scratch holds, row for row, vectors too.

    The other index is made by an indexer and in a database that nothing disturbs, so that no cache
    that a fault may have spoilt has a part in it.
    """
    await check_rules(cluster)
    async with reference_caller(cluster) as calm:
        await calm.create(workspace, directory)
        ended = await calm.run(workspace)
    expected = await asyncio.to_thread(rows_in, cluster.reference_url, workspace)
    found = await asyncio.to_thread(rows_in, cluster.url, workspace)
    assert ended["state"] == "succeeded", dict(ended)
    assert found.files == expected.files
    assert found.nodes == expected.nodes
    assert found.vectors == expected.vectors
    assert found.terms == expected.terms
    assert len(found.vectors) == len(found.nodes) == ended["nodes_total"]


async def count_of(cluster: Cluster, sql: str) -> int:
    """Returns a count that a statement gives."""
    rows = await fetch(cluster.url, sql)
    return int(rows[0][0])


@dataclass(frozen=True, slots=True)
class Takeover:
    """A run that another process took from its owner; times are the database's."""

    lease_until: dt.datetime
    """End of the lease that the owner had when it stopped beating."""

    taken_at: dt.datetime

    def late_seconds(self, ready_at: dt.datetime) -> float:
        """Returns how long the run stood there, its lease over and another process ready."""
        return (self.taken_at - max(self.lease_until, ready_at)).total_seconds()


async def takeovers(cluster: Cluster, run: runs_pb2.IndexRun) -> list[Takeover]:
    """Returns the take-overs of a run in their order."""
    rows = await fetch(
        cluster.url,
        "SELECT lease_until, taken_at FROM audit_takeovers WHERE run_id = $1 ORDER BY taken_at",
        run.name.split("/")[-1],
    )
    return [Takeover(row["lease_until"], row["taken_at"]) for row in rows]


async def database_time(cluster: Cluster) -> dt.datetime:
    """Returns what the database's clock says."""
    at: dt.datetime = (await fetch(cluster.url, "SELECT clock_timestamp()"))[0][0]
    return at
