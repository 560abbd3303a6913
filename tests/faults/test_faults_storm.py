"""F2: random kills, stops and freezes of every service while three indexers work; seeded.

A seed draws the tree, who is hurt when and how, and where indexers kill or freeze themselves: at
work, which a freeze from outside seldom meets. After the
storm all is calm, one full run mends what the storm ended as failed by right (a node that three
workers died of), and the index is held to one from scratch.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.faults.cluster import LEASE_SECONDS, REAP_SECONDS, Cluster, Mode, caller, make_cluster
from tests.faults.conftest import SEEDS
from tests.faults.trees import Editor, write_generated
from tests.faults.truth import check_truth

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.faults.members import Member

_FAULTS = 5
_KINDS = ("kill", "kill", "stop", "freeze")
_LONGEST_FREEZE_SECONDS = 2.5
"""Longer than a lease and its take-over: a frozen owner may wake as one that lost its run."""

_SLEEP_SECONDS = LEASE_SECONDS + REAP_SECONDS + 0.5
"""Seconds that an indexer sleeps which froze itself."""

_STOP_SECONDS = 15.0
_LONGEST_CALM_SECONDS = 0.5
_SELF_KILLS = ("indexer.plan.after", "indexer.claim.after", "indexer.commit.before")
_SELF_FREEZES = ("indexer.claim.after", "indexer.forward.after", "indexer.commit.before")
_PROGRESS_SECONDS = 60.0
_KEEPER_SECONDS = 0.2


@pytest.fixture(scope="module")
def shared_cluster(folder: Path, roots: Path, urls: tuple[str, str]) -> Iterator[Cluster]:
    """Three indexers that give up no run because of kills alone, however many it meets."""
    settings = {"INDEXER_EMBED_BATCH_NODES": "6", "INDEXER_MAX_RUN_ATTEMPTS": "100"}
    cluster = make_cluster(folder, roots, *urls, replicas=3, indexer=settings)
    cluster.start()
    yield cluster
    cluster.kill()


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_a_storm_of_kills_ends_as_if_there_had_been_none(cluster: Cluster, seed: int) -> None:
    """I1 to I6 hold, and each run comes to its end within a minute.

    Red on planted bugs: nodes marked embedded before their vector is stored (I2), a completion that
    looks at the state alone and not at the fence (I5), a reclaim that forgets nodes in work, and
    fences that neither nodes nor runs look at, so that who slept counts once more (one seed of 20).
    """
    name = f"storm-{seed}"
    draw = random.Random(f"storm {seed}")
    folder = write_generated(cluster.roots / name, name, files=20, functions=8)
    async with caller(cluster) as calls:
        await calls.create(name, name)
        run = await calls.begin(name)
        storm = asyncio.create_task(_storm(cluster, draw, seed))
        keeper = asyncio.create_task(_keep_alive(cluster))
        ended = await calls.wait(run, timeout_seconds=_PROGRESS_SECONDS)
        editor = Editor(folder, name)
        for _ in range(draw.randrange(6)):
            editor.step()
        second = await calls.wait(await calls.begin(name), timeout_seconds=_PROGRESS_SECONDS)
        await storm
        keeper.cancel()
        for member in cluster.indexers:  # some are still told to kill themselves
            await asyncio.to_thread(_kill_and_start, member, "")
        await asyncio.to_thread(cluster.start)
        last = await calls.run(name, Mode.MODE_FULL)

    for row in (ended, second):
        assert row["state"] in {"succeeded", "succeeded_with_warnings"}, dict(row)
        ended_nodes = row["nodes_embedded"] + row["nodes_reused"] + row["nodes_failed"]
        assert ended_nodes == row["nodes_total"], dict(row)
    assert last["state"] == "succeeded", dict(last)
    await check_truth(cluster, name, name)


async def _storm(cluster: Cluster, draw: random.Random, seed: int) -> None:
    """Hurts one member after the other; each comes back at once, some told to kill themselves."""
    for number in range(_FAULTS):
        await asyncio.sleep(draw.uniform(0.0, _LONGEST_CALM_SECONDS))
        victim: Member = draw.choice([*cluster.indexers, *cluster.members])
        kind = draw.choice(_KINDS)
        if kind == "freeze":
            seconds = draw.uniform(0.1, _LONGEST_FREEZE_SECONDS)
            await asyncio.to_thread(_freeze, victim, seconds)
            continue
        failing = ""
        if victim in cluster.indexers:
            failing = f"{_self_harm(draw)},seed={seed}{number}"
        end = _stop_and_start if kind == "stop" else _kill_and_start
        await asyncio.to_thread(end, victim, failing)


def _self_harm(draw: random.Random) -> str:
    """Returns what an indexer is to do to itself, as failpoints say it."""
    if draw.random() < 0.5:
        return f"{draw.choice(_SELF_KILLS)}=kill%0.1"
    return f"{draw.choice(_SELF_FREEZES)}=stop%0.2"


async def _keep_alive(cluster: Cluster) -> None:
    """Starts again what killed itself, as the one who runs the services does, and wakes sleepers.

    Who froze itself sleeps until another may have taken its run, and works on it.
    """
    asleep: dict[int, float] = {}
    while True:
        await asyncio.sleep(_KEEPER_SECONDS)
        for member in cluster.members:
            if not member.alive:
                await asyncio.to_thread(_kill_and_start, member, "")
            elif not member.frozen:
                asleep.pop(member.pid, None)
            elif (
                time.monotonic() > asleep.setdefault(member.pid, time.monotonic()) + _SLEEP_SECONDS
            ):
                member.signal(signal.SIGCONT)
                asleep.pop(member.pid)  # who freezes again sleeps as long again


def _kill_and_start(member: Member, failing: str) -> None:
    with member.lock:
        member.kill()
        member.spawn(failing)


def _stop_and_start(member: Member, failing: str) -> None:
    with member.lock:
        if member.alive:
            code = member.terminate(_STOP_SECONDS)
            # It may be stopped before it has set itself up, or kill itself on its way out.
            assert code in {0, -signal.SIGTERM, -signal.SIGKILL}, (member.name, code)
        member.kill()  # what it started, if it killed itself
        member.spawn(failing)


def _freeze(member: Member, seconds: float) -> None:
    with member.lock:
        member.signal(signal.SIGSTOP)
        time.sleep(seconds)
        member.signal(signal.SIGCONT)
