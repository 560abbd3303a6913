"""F6: wall clocks are off by an hour, either way, or jump; leases are the database's."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.faults.cluster import LATE_SECONDS, LEASE_SECONDS, Cluster, caller
from tests.faults.trees import write_generated
from tests.faults.truth import check_truth, database_time, takeovers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lodestone.indexer.v1 import index_run_service_pb2 as runs_pb2
    from tests.faults.members import Member

_HOUR_SECONDS = 3600
_SLOW = "indexer.forward.before=sleep:0.4@1+"
"""Holds each batch up, so that a run takes several leases."""

_SLOWER = "indexer.forward.before=sleep:1@1+"
_HELD = "indexer.forward.before=sleep:60@1+"
"""Holds a run up for as long as its owner lives."""

_JUMPS = (-_HOUR_SECONDS, _HOUR_SECONDS)
_LONG_LEASE_SECONDS = 3.0
"""No owner on a busy machine loses it while it lives."""

_PRELOAD = str(Path(__file__).parent / "wrong_clock")


@pytest.fixture(params=[_HOUR_SECONDS, -_HOUR_SECONDS], ids=["ahead", "behind"])
def wrong(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Member]:
    """An indexer whose clock is off; it and the other are to be started by the test."""
    for member in cluster.indexers:
        member.kill()
    member = cluster.indexers[1]
    member.extra = {"PYTHONPATH": _PRELOAD, "WRONG_CLOCK_SECONDS": str(request.param)}
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
    owner.start(_HELD)
    async with caller(cluster, [owner]) as calls:
        await calls.create(name, name)
        run = await calls.begin(name)
        first = await calls.wait(run, lambda row: row["owner"] is not None)
        wrong.start()
        lease_until = first["lease_until"].timestamp() + 2 * LEASE_SECONDS
        beaten = await calls.wait(run, lambda row: row["lease_until"].timestamp() > lease_until)
        owner.kill()
        died_at = await database_time(cluster)
        ended = await calls.wait(run)

    assert (beaten["attempt"], beaten["fence"]) == (1, first["fence"])
    (taken,) = await takeovers(cluster, run)
    assert (taken.lease_until - died_at).total_seconds() <= LEASE_SECONDS
    assert taken.late_seconds(died_at) < LATE_SECONDS
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


@pytest.fixture
def clock(cluster: Cluster, tmp_path: Path) -> Iterator[Path]:
    """The file of the clock that io, embed and both indexers go by; they are started with it."""
    told = tmp_path / "seconds"
    _set(told, 0)
    members = cluster.members
    settings = [member.settings for member in members]
    for member in members:
        member.kill()
        member.extra = {"PYTHONPATH": _PRELOAD, "WRONG_CLOCK_FILE": str(told)}
    for member in cluster.indexers:
        member.settings = {
            **member.settings,
            "INDEXER_LEASE_SECONDS": str(_LONG_LEASE_SECONDS),
        }
        member.spawn(_SLOWER)
    cluster.start()
    for member in members:
        member.wait_ready()
    yield told
    for member, before in zip(members, settings, strict=True):
        member.kill()
        member.extra, member.settings = {}, before


async def test_clocks_that_jump_while_a_run_goes_on_touch_no_lease(
    cluster: Cluster, clock: Path
) -> None:
    """The owner keeps its run over every jump; when it dies after one, the other has it in time.

    Red on a planted bug: a lease that is prolonged by the time of the process.
    """
    name = "clock-jumps"
    write_generated(cluster.roots / name, name)
    async with caller(cluster) as calls:
        await calls.create(name, name)
        run = await calls.begin(name)
        row = await calls.wait(run, lambda row: row["forwards"] > 0)
        for seconds in _JUMPS:
            _set(clock, seconds)
            for _ in range(2):  # the first beat may have begun before
                seen = row["lease_until"]
                row = await calls.wait(run, lambda row, seen=seen: row["lease_until"] != seen)  # type: ignore[misc]
        _owner(cluster, run).kill()
        died_at = await database_time(cluster)
        await calls.wait(run, lambda row: row["attempt"] == 2)
        _set(clock, 0)
        ended = await calls.wait(run)

    assert row["attempt"] == 1
    (taken,) = await takeovers(cluster, run)
    assert (taken.lease_until - died_at).total_seconds() <= _LONG_LEASE_SECONDS
    assert taken.late_seconds(died_at) < LATE_SECONDS
    assert (ended["state"], ended["attempt"]) == ("succeeded", 2)
    await check_truth(cluster, name, name)


def _set(clock: Path, seconds: float) -> None:
    """Has the clock jump; the file is written in place, as processes have it in their memory."""
    with clock.open("r+b" if clock.exists() else "wb") as file:
        file.write(struct.pack("d", seconds))


def _owner(cluster: Cluster, run: runs_pb2.IndexRun) -> Member:
    started = f'{{"run": "{run.name.split("/")[-1]}", "attempt": 1,'
    (owner,) = [member for member in cluster.indexers if started in member.log]
    return owner
