"""How quickly runs are queued and steered while the model is busy, and what a scope saves.

`python -m tests.bench.indexer_runs`; the last line is JSON.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lodestone.indexer.v1 import index_run_service_pb2 as runs_pb2
from services.indexer.storage.database import Database
from services.indexer.storage.migrate import migrate
from services.runtime import log
from tests.bench.figures import figure, say
from tests.integration.indexing import Mode, State, indexing
from tests.integration.samples import edit, write_many
from tests.support import postgres

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.integration.indexing import Indexing

_CALLS = 200
_BULK_NODES = 20_000
_ROUNDS = 5
_P99_GOAL_SECONDS = 0.1
_PAUSE_GOAL_SECONDS = 5.0
_SCOPED_GOAL = 1.0


def measure(scratch: Path) -> dict[str, dict[str, Any]]:
    """Returns the figures; `scratch` is an empty folder."""
    log.configure("indexer", "error", "json")
    with postgres.running() as server:
        url = server.create()
        return asyncio.run(_measure(scratch, url))


async def _measure(scratch: Path, url: str) -> dict[str, dict[str, Any]]:
    async with _services(scratch, url) as services:
        p99, pause = await _steer_beside_bulk(services)
        ratio, claim_ratio = await _compare_scoped(services)
    return {
        "create_run_p99_seconds_model_busy": figure(
            p99, _P99_GOAL_SECONDS, met=p99 <= _P99_GOAL_SECONDS
        ),
        "pause_to_paused_seconds": figure(
            pause, _PAUSE_GOAL_SECONDS, met=pause <= _PAUSE_GOAL_SECONDS
        ),
        "scoped_to_incremental_ratio": figure(ratio, _SCOPED_GOAL, met=ratio <= _SCOPED_GOAL),
        "scoped_forwards": figure(claim_ratio, 1, met=claim_ratio == 1),
    }


@asynccontextmanager
async def _services(scratch: Path, url: str) -> AsyncIterator[Indexing]:
    database = Database(url, connections=2, timeout_seconds=30)
    await database.open()
    await migrate(database, url)
    await database.close()
    roots = scratch / "trees"
    write_many(roots / "bulk", _BULK_NODES)
    write_many(roots / "small", 50)
    with tempfile.TemporaryDirectory(prefix="ls-") as sockets:
        async with indexing(roots, Path(sockets), url) as services:
            await services.create("bulk", "bulk")
            await services.create("small", "small")
            yield services


async def _steer_beside_bulk(services: Indexing) -> tuple[float, float]:
    """Returns the p99 of queueing a run beside a bulk one, and the time that it takes to pause."""
    bulk = await services.begin("bulk")
    await services.wait(bulk, lambda seen: seen.progress.forwards > 0)
    took: list[float] = []
    for _ in range(_CALLS):
        started = time.perf_counter()
        await services.begin("small", if_running=_JOIN)
        took.append(time.perf_counter() - started)
    p99 = sorted(took)[int(len(took) * 0.99) - 1]
    say(f"queueing a run beside a bulk one: p50 {statistics.median(took):.4f} s, p99 {p99:.4f} s")
    started = time.perf_counter()
    await services.runs.PauseIndexRun(runs_pb2.PauseIndexRunRequest(name=bulk.name))
    await services.wait(bulk, lambda seen: seen.state == State.STATE_PAUSED)
    pause = time.perf_counter() - started
    say(f"a bulk run paused in {pause:.2f} s")
    await services.runs.ResumeIndexRun(runs_pb2.ResumeIndexRunRequest(name=bulk.name))
    await services.wait(bulk, timeout_seconds=600)
    return p99, pause


async def _compare_scoped(services: Indexing) -> tuple[float, float]:
    """Returns the time of a scoped run over one edited file as a ratio to an incremental one's."""
    path = services.roots / "bulk" / "part_000500.py"
    scoped: list[float] = []
    whole: list[float] = []
    forwards = 0.0
    for number in range(_ROUNDS):
        edit(path, "total = value + 500\n", f"total = value + 500\n    total += {number}\n")
        started = time.perf_counter()
        run = await services.run("bulk", Mode.MODE_SCOPED, paths=[path.name])
        scoped.append(time.perf_counter() - started)
        forwards = max(forwards, run.progress.forwards)
        edit(path, "total = value + 501\n", f"total = value + 501\n    total += {number}\n")
        started = time.perf_counter()
        await services.run("bulk")
        whole.append(time.perf_counter() - started)
    ratio = statistics.median(scoped) / statistics.median(whole)
    say(
        f"one edited file: scoped {statistics.median(scoped):.3f} s, "
        f"incremental {statistics.median(whole):.3f} s"
    )
    return ratio, forwards


_JOIN = runs_pb2.CreateIndexRunRequest.IfRunning.IF_RUNNING_JOIN


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        print(json.dumps(measure(Path(folder))))  # noqa: T201 - the result
