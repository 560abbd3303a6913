"""F1: a service is killed at each of its failpoints, and the run ends as if it had not been.

Planted bugs that turned these red: see the docstrings.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from services.runtime.failpoints import POINTS
from tests.faults.cluster import LATE_SECONDS, LEASE_SECONDS, Cluster, caller
from tests.faults.members import wait_died
from tests.faults.trees import write_generated
from tests.faults.truth import check_truth, database_time, takeovers

if TYPE_CHECKING:
    from collections.abc import Mapping

_VISITS = {
    "indexer.take.before": 3,  # once at the start, once for the run, once for more
    "indexer.take.after": 1,
    "indexer.finish.before": 1,
    "indexer.finish.after": 1,
}
"""Which visit kills; of points in the middle of a run the second, so that something is done."""


_HELD = "indexer.forward.before=sleep:60@1+"
"""Holds a run up for as long as its owner lives."""


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
    """The other replica goes on once the lease is over.

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
        wait_died(doomed, 20)
        before = await calls.row(run)
        other.start()
        ready_at = await database_time(cluster)
        taken = await calls.wait(run, lambda row: before is not None and _went_on(before, row))
        ended = await calls.wait(run)

    for takeover in await takeovers(cluster, run):
        assert takeover.late_seconds(ready_at) < LATE_SECONDS
    assert ended["state"] == "succeeded", dict(taken)
    await check_truth(cluster, name, name)


async def test_a_dead_owners_run_is_taken_within_its_lease_and_the_next_look(
    cluster: Cluster,
) -> None:
    """Each owner dies while the other stands by; both bounds are held by the database's clock.

    Red on a planted bug: a dispatcher that looks each five seconds.
    """
    name = "killed-in-turn"
    write_generated(cluster.roots / name, name)
    owner, other = cluster.indexers
    for member in cluster.indexers:
        member.kill()
    owner.start(_HELD)
    dead = []
    async with caller(cluster) as calls:
        await calls.create(name, name)
        run = await calls.begin(name)
        row = await calls.wait(run, lambda row: row["owner"] is not None)
        for failing in (_HELD, ""):
            await asyncio.to_thread(other.start, failing)
            owner.kill()
            dead.append(await database_time(cluster))
            attempt = row["attempt"]
            row = await calls.wait(run, lambda row, last=attempt: row["attempt"] > last)  # type: ignore[misc]
            owner, other = other, owner
        ended = await calls.wait(run)

    taken = await takeovers(cluster, run)
    for died_at in dead:
        takeover = next(item for item in taken if item.taken_at > died_at)
        assert (takeover.lease_until - died_at).total_seconds() <= LEASE_SECONDS
        assert takeover.late_seconds(takeover.lease_until) < LATE_SECONDS
    assert ended["state"] == "succeeded", dict(ended)
    await check_truth(cluster, name, name)


def _went_on(before: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Whether another owner has the run, or it had ended before its owner died."""
    return bool(row["finished_at"] is not None or row["fence"] > before["fence"])
