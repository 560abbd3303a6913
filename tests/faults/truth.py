"""Holds a disturbed index to the invariants, and to one built from scratch by others."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from tests.faults.cluster import fetch, reference_caller
from tests.support.index_rows import rows_in
from tests.support.invariants import IDLE_SECONDS, broken_rules

if TYPE_CHECKING:
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
