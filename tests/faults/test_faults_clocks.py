"""F6: the wall clock of an indexer is off by an hour, either way; leases are the database's."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.faults.cluster import LEASE_SECONDS, TAKEOVER_SECONDS, Cluster, caller
from tests.faults.trees import write_generated
from tests.faults.truth import check_truth

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.members import Member

_HOUR_SECONDS = 3600
_SLOW = "indexer.forward.before=sleep:0.4@1+"
"""Holds each batch up, so that a run takes several leases."""


@pytest.fixture(params=[_HOUR_SECONDS, -_HOUR_SECONDS], ids=["ahead", "behind"])
def wrong(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Member]:
    """An indexer whose clock is off; it and the other are to be started by the test."""
    for member in cluster.indexers:
        member.kill()
    member = cluster.indexers[1]
    folder = Path(__file__).parent / "wrong_clock"
    member.extra = {"PYTHONPATH": str(folder), "WRONG_CLOCK_SECONDS": str(request.param)}
    yield member
    member.kill()
    member.extra = {}


async def test_a_wrong_clock_steals_no_run_and_takes_one_over_in_time(
    cluster: Cluster, wrong: Member
) -> None:
    """The one with the wrong clock waits while the owner beats, and no longer than it has to.

    Red on a planted bug: a lease that is over by the time of the process that looks at it.
    """
    name = f"clock-{wrong.extra['WRONG_CLOCK_SECONDS'].replace('-', 'minus-')}"
    write_generated(cluster.roots / name, name)
    owner = cluster.indexers[0]
    owner.start(_SLOW)
    async with caller(cluster, [owner]) as calls:
        await calls.create(name, name)
        run = await calls.begin(name)
        first = await calls.wait(run, lambda row: row["owner"] is not None)
        wrong.start()
        lease_until = first["lease_until"].timestamp() + 2 * LEASE_SECONDS
        beaten = await calls.wait(run, lambda row: row["lease_until"].timestamp() > lease_until)
        owner.kill()
        died_at = time.monotonic()
        await calls.wait(run, lambda row: row["fence"] > beaten["fence"])
        taken_at = time.monotonic()
        ended = await calls.wait(run)

    assert (beaten["attempt"], beaten["fence"]) == (1, first["fence"])
    assert taken_at - died_at < TAKEOVER_SECONDS
    assert (ended["state"], ended["attempt"]) == ("succeeded", 2)
    await check_truth(cluster, name, name)


async def test_an_owner_with_a_wrong_clock_keeps_its_run_while_it_beats(
    cluster: Cluster, wrong: Member
) -> None:
    """Red on a planted bug: a lease that is prolonged by the time of the process."""
    name = f"clock-owner-{wrong.extra['WRONG_CLOCK_SECONDS'].replace('-', 'minus-')}"
    write_generated(cluster.roots / name, name)
    wrong.start(_SLOW)
    async with caller(cluster, [wrong]) as calls:
        await calls.create(name, name)
        run = await calls.begin(name)
        await calls.wait(run, lambda row: row["owner"] is not None)
        cluster.indexers[0].start()
        ended = await calls.wait(run)

    assert (ended["state"], ended["attempt"]) == ("succeeded", 1)
    await check_truth(cluster, name, name)
