"""F1: a service is killed at each of its failpoints, and the run ends as if it had not been.

Planted bugs that turned these red: see the docstrings.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from services.runtime.failpoints import POINTS
from tests.faults.cluster import TAKEOVER_SECONDS, Cluster, caller
from tests.faults.members import wait_died
from tests.faults.trees import write_generated
from tests.faults.truth import check_truth

if TYPE_CHECKING:
    from collections.abc import Mapping

_VISITS = {
    "indexer.take.before": 3,  # once at the start, once for the run, once for more
    "indexer.take.after": 1,
    "indexer.finish.before": 1,
    "indexer.finish.after": 1,
}
"""Which visit kills; of points in the middle of a run the second, so that something is done."""


@pytest.mark.parametrize("point", [name for name in POINTS if not name.startswith("indexer.")])
async def test_a_service_killed_at_any_point_costs_a_wait(cluster: Cluster, point: str) -> None:
    name = point.replace(".", "-")
    write_generated(cluster.roots / name, name)
    member = cluster.io if point.startswith("io.") else cluster.embed
    member.kill()
    member.start(f"{point}=kill@1")
    async with caller(cluster) as calls:
        await calls.create(name, name)
        run = await calls.begin(name)
        wait_died(member, 20)
        member.start()
        ended = await calls.wait(run)

    assert (ended["state"], ended["attempt"]) == ("succeeded", 1)
    await check_truth(cluster, name, name)


_IN_A_RUN = [
    name
    for name in POINTS
    if name.startswith("indexer.") and not name.startswith("indexer.migrate")
]


@pytest.mark.parametrize("point", _IN_A_RUN)
async def test_an_indexer_killed_at_any_point_is_taken_over(cluster: Cluster, point: str) -> None:
    """The other replica goes on within lease + reap + 1 s.

    Red on planted bugs: nodes marked embedded before their vector is stored, in a transaction of
    its own (I2, at `indexer.commit.before` and within); a take-over that forgets nodes in work.
    """
    name = point.replace(".", "-")
    write_generated(cluster.roots / name, name)
    doomed, other = cluster.indexers
    for member in cluster.indexers:
        member.kill()
    doomed.start(f"{point}=kill@{_VISITS.get(point, 2)}")
    async with caller(cluster) as calls:
        await calls.create(name, name)
        run = await calls.begin(name)
        died_at = wait_died(doomed, 20)
        before = await calls.row(run)
        other.start()
        started_at = time.monotonic()
        taken = await calls.wait(run, lambda row: before is not None and _went_on(before, row))
        taken_at = time.monotonic()
        ended = await calls.wait(run)

    assert taken_at - max(died_at, started_at) < TAKEOVER_SECONDS
    assert ended["state"] == "succeeded", dict(taken)
    await check_truth(cluster, name, name)


def _went_on(before: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Whether another owner has the run, or it had ended before its owner died."""
    return bool(row["finished_at"] is not None or row["fence"] > before["fence"])
