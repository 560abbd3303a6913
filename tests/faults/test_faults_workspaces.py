"""Several workspaces at work at once on several replicas: each text costs one forward.

Runs of all workspaces are queued at once, twice over; replicas take one at a time each.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.faults.cluster import Cluster, Mode, caller, fetch, make_cluster
from tests.faults.trees import write_generated
from tests.faults.truth import check_truth, count_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_WORKSPACES = 6


@pytest.fixture(scope="module", params=[2, 3], ids=["two-replicas", "three-replicas"])
def shared_cluster(
    request: pytest.FixtureRequest, folder: Path, roots: Path, urls: tuple[str, str]
) -> Iterator[Cluster]:
    """Indexers that work on one run at a time, so that none takes all."""
    sockets = folder / str(request.param)
    sockets.mkdir()
    cluster = make_cluster(
        sockets,
        roots,
        *urls,
        replicas=request.param,
        indexer={"INDEXER_MAX_CONCURRENT_RUNS": "1"},
    )
    cluster.start()
    yield cluster
    cluster.kill()


@pytest.mark.timeout(240)
async def test_workspaces_on_several_replicas_cost_one_forward_a_text(cluster: Cluster) -> None:
    """Red on a planted bug: a batch that takes no heed of texts that others have in flight."""
    names = [f"many-{len(cluster.indexers)}-{number}" for number in range(_WORKSPACES)]
    for name in names:
        write_generated(cluster.roots / name, name, files=15, functions=6)
    async with caller(cluster) as calls:
        for name in names:
            await calls.create(name, name)
        first = [await calls.begin(name) for name in names]
        rows = await asyncio.gather(*(calls.wait(run) for run in first))
        second = [await calls.begin(name, Mode.MODE_FULL) for name in names]
        again = await asyncio.gather(*(calls.wait(run) for run in second))

    for row in (*rows, *again):
        assert (row["state"], row["attempt"]) == ("succeeded", 1), dict(row)
    assert {row["forwards"] for row in again} == {0}
    for name, row in zip(names, rows, strict=True):
        texts = await _distinct_texts(cluster, name)
        assert row["forwards"] == texts < row["nodes_total"], dict(row)
    assert (
        await count_of(cluster, "SELECT count(*) FROM nodes WHERE attempt > 1 OR crash_count > 0")
        == 0
    )
    started = [member.log.count('"run_started"') for member in cluster.indexers]
    assert sum(started) == 2 * _WORKSPACES
    assert min(started) > 0, started
    for name in names[:2]:
        await check_truth(cluster, name, name)


async def _distinct_texts(cluster: Cluster, workspace: str) -> int:
    rows = await fetch(
        cluster.url,
        "SELECT count(DISTINCT n.content_hash) FROM nodes n JOIN workspaces w "
        "ON w.id = n.workspace_id WHERE w.name = $1",
        workspace,
    )
    return int(rows[0][0])
