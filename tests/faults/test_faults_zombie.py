"""F4: an indexer that sleeps past its lease wakes up and finds that it owns nothing any more."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import pytest

from tests.faults.cluster import Cluster, caller
from tests.faults.trees import write_generated
from tests.faults.truth import check_truth
from tests.support.stack import wait_until

if TYPE_CHECKING:
    from tests.faults.members import Member

_POINTS = (
    "indexer.plan.before",
    "indexer.claim.after",
    "indexer.forward.after",
    "indexer.commit.before",
    "indexer.finish.before",
)
"""Where it falls asleep: with a plan to write, with claims, with vectors, with the end to tell."""


def _gave_up(member: Member) -> bool:
    """Whether it was refused, or found the transaction gone in which it fell asleep."""
    return any(event in member.log for event in ('"run_lost"', '"run_left"'))


@pytest.mark.parametrize("point", _POINTS)
async def test_a_zombie_is_refused_and_stops_by_itself(cluster: Cluster, point: str) -> None:
    """Another replica ends the run; the beat and the completion of the one that wakes are refused.

    Red on a planted bug: no limit on transactions that stand still, so that one in which the zombie
    fell asleep keeps its locks.
    """
    name = f"zombie-{point.replace('.', '-')}"
    write_generated(cluster.roots / name, name)
    zombie, other = cluster.indexers
    for member in cluster.indexers:
        member.kill()
    zombie.start(f"{point}=stop@{1 if 'finish' in point else 2}")
    async with caller(cluster, [other]) as calls, caller(cluster, [zombie]) as asleep:
        await asleep.create(name, name)
        run = await asleep.begin(name)
        await asyncio.to_thread(wait_until, lambda: zombie.frozen, 20, "it is frozen")
        other.start()
        ended = await calls.wait(run)
        zombie.signal(signal.SIGCONT)
        await asyncio.to_thread(
            wait_until, lambda: _gave_up(zombie), 10, "the zombie knows that it lost"
        )
        again = await calls.run(name)

    assert (ended["state"], ended["attempt"]) == ("succeeded", 2)
    assert (again["state"], again["forwards"]) == ("succeeded", 0)
    assert zombie.alive
    await check_truth(cluster, name, name)


async def test_a_zombie_that_wakes_while_the_other_works_disturbs_nothing(
    cluster: Cluster,
) -> None:
    """It wakes in the middle of the other's work, with claims on the very same nodes.

    Red on a planted bug: nodes given back by their state alone, not by their fence.
    """
    name = "zombie-beside"
    write_generated(cluster.roots / name, name)
    zombie, other = cluster.indexers
    for member in cluster.indexers:
        member.kill()
    zombie.start("indexer.forward.after=stop@2")
    async with caller(cluster, [other]) as calls, caller(cluster, [zombie]) as asleep:
        await asleep.create(name, name)
        run = await asleep.begin(name)
        await asyncio.to_thread(wait_until, lambda: zombie.frozen, 20, "it is frozen")
        other.start("indexer.commit.before=sleep:0.1@1+")
        taken = await calls.wait(run, lambda row: row["attempt"] == 2)
        await calls.wait(run, lambda row: row["forwards"] > taken["forwards"])
        zombie.signal(signal.SIGCONT)
        ended = await calls.wait(run)

    assert (ended["state"], ended["attempt"]) == ("succeeded", 2)
    await check_truth(cluster, name, name)
