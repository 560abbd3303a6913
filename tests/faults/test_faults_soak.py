"""F18: a soak under load with slow kills: memory and tables stay as they are.

`make test-nightly` soaks for ten minutes, after five in which caches fill; `make test` looks at
half a minute of the same, with a bound that is wide enough for what so short a time tells.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.faults.cluster import Cluster, caller, fetch, make_cluster
from tests.faults.trees import Editor, write_generated
from tests.faults.truth import check_truth

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.faults.cluster import Caller

SOAK_SECONDS = float(os.environ.get("LODESTONE_TEST_SOAK_SECONDS", "30"))
_NAME = "soak"
_IS_LONG = SOAK_SECONDS >= 600
_WARM_SECONDS = SOAK_SECONDS * (0.5 if _IS_LONG else 0.3)
"""Before that: caches and pools grow, and what a search notes of each node that was edited."""

_REST_SECONDS = 0.15
"""Between two runs: the services work some 70% of the time."""

_KILL_SECONDS = 8.0
_SLOPE_SECONDS = 600
_MOST_BYTES = 1 << 20
"""Growth in ten minutes, by the line that fits all measurements best."""

_MOST_BYTES_SHORT = 24 << 20
"""From one half of a short soak to the other: a minute's noise is larger than ten minutes'."""

_MOST_TABLE_GROWTH = 2.0
_MOST_FILES = 50
"""A tree that grows would be what memory grows by."""


@pytest.fixture(scope="module")
def shared_cluster(folder: Path, roots: Path, urls: tuple[str, str]) -> Iterator[Cluster]:
    """Two indexers; finished runs and texts that no node has are forgotten soon.

    Connections are few. Each comes to hold the statements that it was asked, ten kilobytes apiece
    and a hundred at most; where there are many that takes far longer than a soak.
    """
    cluster = make_cluster(
        folder,
        roots,
        *urls,
        indexer={
            "INDEXER_DATABASE_CONNECTIONS": "3",
            "INDEXER_RETENTION_DAYS": "1",
            "INDEXER_RETENTION_RUNS": "20",
            "INDEXER_RETENTION_INTERVAL_SECONDS": "1",
            "INDEXER_CACHE_DAYS": "0.0002",
            "INDEXER_CACHE_SWEEP_SECONDS": "5",
        },
    )
    cluster.start()
    yield cluster
    cluster.kill()


@pytest.mark.timeout(_WARM_SECONDS + SOAK_SECONDS + 120)
async def test_a_soak_leaves_memory_and_tables_as_they_were(cluster: Cluster) -> None:
    folder = write_generated(cluster.roots / _NAME, _NAME, files=40, functions=8)
    editor, draw = Editor(folder, _NAME, most_files=_MOST_FILES), random.Random(_NAME)
    resident: list[tuple[float, int]] = []
    began = time.monotonic()
    killed = began
    async with caller(cluster) as calls:
        await calls.create(_NAME, _NAME)
        await _run(calls)
        tables: dict[str, int] = {}
        while (now := time.monotonic()) < began + _WARM_SECONDS + SOAK_SECONDS:
            editor.step()
            await _run(calls)
            await calls.search(_NAME, "function value")
            resident.append((now - began, _resident_bytes(cluster)))
            if not tables and now - began > _WARM_SECONDS:
                tables = await _table_bytes(cluster)
            if now > killed + _KILL_SECONDS:
                killed = now
                # io, embed and the first indexer live on: theirs is the memory that is looked at.
                await asyncio.to_thread(cluster.indexers[1].kill)
                await asyncio.to_thread(cluster.indexers[1].start)
                await _age_runs(cluster)
            await asyncio.sleep(_REST_SECONDS * draw.random() * 2)
        await _run(calls)

    warm = [(at, size) for at, size in resident if at > _WARM_SECONDS]
    if _IS_LONG:
        slope = statistics.linear_regression(*zip(*warm, strict=True)).slope * _SLOPE_SECONDS
        assert slope < _MOST_BYTES, (slope, len(resident))
    else:
        sizes, half = [size for _, size in warm], len(warm) // 2
        grown = statistics.median(sizes[half:]) - statistics.median(sizes[:half])
        assert grown < _MOST_BYTES_SHORT, (grown, len(resident))
    later = await _table_bytes(cluster)
    grown_tables = {name: (tables.get(name, 0), size) for name, size in later.items()}
    assert sum(later.values()) < _MOST_TABLE_GROWTH * sum(tables.values()), grown_tables
    await check_truth(cluster, _NAME, _NAME)


async def _age_runs(cluster: Cluster) -> None:
    """Makes finished runs two days older, so that those beyond the newest need not be kept."""
    await fetch(
        cluster.url,
        "WITH past_triggers AS (SELECT set_config('session_replication_role', 'replica', true)) "
        "UPDATE runs SET finished_at = finished_at - interval '2 days' FROM past_triggers "
        "WHERE finished_at > now() - interval '1 day'",
    )


async def _run(calls: Caller) -> None:
    row = await calls.run(_NAME)
    assert row["state"] == "succeeded", dict(row)


def _resident_bytes(cluster: Cluster) -> int:
    """Returns what the processes that live through the soak hold."""
    members = (cluster.io, cluster.embed, cluster.indexers[0])
    return sum(int(psutil.Process(member.pid).memory_info().rss) for member in members)


async def _table_bytes(cluster: Cluster) -> dict[str, int]:
    """Returns what each table takes with its indexes."""
    rows = await fetch(
        cluster.url,
        "SELECT c.relname, pg_total_relation_size(c.oid) FROM pg_class c "
        "WHERE c.relkind = 'r' AND c.relnamespace = current_schema()::regnamespace "
        "AND c.relname !~ '^(audit|write_audit)'",
    )
    return {row[0]: int(row[1]) for row in rows}
