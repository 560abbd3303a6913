"""F12: a run is cancelled at each stage, or as it ends; a caller goes away at each stage."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING

import grpc
import pytest

from lodestone.indexer.v1 import index_run_service_pb2 as runs_pb2
from lodestone.indexer.v1 import index_run_service_pb2_grpc as runs_grpc
from lodestone.indexer.v1 import search_service_pb2 as search_pb2
from lodestone.indexer.v1 import search_service_pb2_grpc as search_grpc
from tests.faults.cluster import Cluster, caller
from tests.faults.trees import write_generated
from tests.faults.truth import check_rules, check_truth
from tests.support.stack import wait_until

if TYPE_CHECKING:
    from tests.faults.members import Member

_TWINS = 4 * 8
"""Functions of a generated tree whose text another has: of four of its 24 files."""

_RACES = 12
_CALLS = 200
_SPARE_DESCRIPTORS = 12


@pytest.mark.parametrize(
    "point",
    [
        "indexer.take.after",
        "indexer.plan.before",
        "indexer.claim.after",
        "indexer.fetch.before",
        "indexer.forward.before",
        "indexer.commit.before",
        "indexer.finish.before",
    ],
)
async def test_a_run_cancelled_at_any_stage_ends_cancelled_and_the_next_completes_it(
    cluster: Cluster, point: str
) -> None:
    """Red on a planted bug: an end that looks at how the work ended, not at what was asked for."""
    name = f"cancel-{point.replace('.', '-')}"
    write_generated(cluster.roots / name, name)
    worker, other = cluster.indexers
    for member in cluster.indexers:
        member.kill()
    worker.start(f"{point}=sleep:2@1")
    async with caller(cluster, [worker]) as calls:
        await calls.create(name, name)
        run = await calls.begin(name)
        await calls.wait(run, lambda row: row["owner"] is not None)
        if point == "indexer.finish.before":
            await calls.wait(run, lambda row: row["nodes_total_final"] and not row["nodes_pending"])
        await calls.cancel(run)
        ended = await calls.wait(run)
        await check_rules(cluster)
        other.start()
        again = await calls.run(name)

    assert (ended["state"], ended["owner"]) == ("cancelled", None)
    assert again["state"] == "succeeded"
    assert ended["forwards"] + again["forwards"] == again["nodes_total"] - _TWINS
    await check_truth(cluster, name, name)


async def test_a_cancel_that_races_the_end_is_one_or_the_other(cluster: Cluster) -> None:
    """Cancelled if and only if it was asked for before the end: the audit says so of each run."""
    draw = random.Random("cancel races")
    name = "cancel-race"
    write_generated(cluster.roots / name, name, files=4)
    states = set()
    async with caller(cluster) as calls:
        await calls.create(name, name)
        await calls.run(name)
        for _ in range(_RACES):
            run = await calls.begin(name)
            await asyncio.sleep(draw.uniform(0.0, 0.15))
            await calls.cancel(run)
            ended = await calls.wait(run)
            states.add(ended["state"])
            assert (ended["state"] == "cancelled") == (ended["cancel_requested_at"] is not None)
        assert (await calls.run(name))["state"] == "succeeded"
    assert states <= {"cancelled", "succeeded"}
    await check_truth(cluster, name, name)


async def test_callers_that_go_away_leave_nothing_behind(cluster: Cluster) -> None:
    """Hundreds of calls that end within milliseconds: pools are full again, no lock is held.

    Red on a planted bug: a connection that is not given back when its task is cancelled.
    """
    name = "go-away"
    write_generated(cluster.roots / name, name, files=8)
    draw = random.Random("callers")
    async with caller(cluster) as calls:
        await calls.create(name, name)
        await calls.run(name)
        before = [member.descriptors() for member in cluster.indexers]
        for channel in calls.channels:
            await asyncio.gather(*(_go_away(channel, name, draw) for _ in range(_CALLS // 2)))
        hits = await calls.search(name, "value total work")
        ended = await calls.run(name)

    assert hits
    assert ended["state"] == "succeeded"
    for member, count in zip(cluster.indexers, before, strict=True):
        await asyncio.to_thread(_wait_given_back, member, count + _SPARE_DESCRIPTORS)
    await check_truth(cluster, name, name)


def _wait_given_back(member: Member, most: int) -> None:
    wait_until(lambda: member.descriptors() <= most, 10, "descriptors are given back")


async def _go_away(channel: grpc.aio.Channel, workspace: str, draw: random.Random) -> None:
    """Makes a call and leaves before it has ended, or just after."""
    parent = f"workspaces/{workspace}"
    timeout_seconds = draw.uniform(0.001, 0.05)
    with contextlib.suppress(grpc.aio.AioRpcError):
        if draw.random() < 0.5:
            await search_grpc.SearchServiceStub(channel).SearchNodes(
                search_pb2.SearchNodesRequest(parent=parent, query="total value", page_size=5),
                timeout=timeout_seconds,
            )
        else:
            await runs_grpc.IndexRunServiceStub(channel).ListIndexRuns(
                runs_pb2.ListIndexRunsRequest(parent=parent, page_size=50),
                timeout=timeout_seconds,
            )
