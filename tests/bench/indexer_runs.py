"""How quickly runs are queued and steered while the model is busy, and what a scope saves.

The services are processes. A bulk run with the real model is steered, which nothing else of the
machine waits for; scopes are compared with the model that hashes.

`python -m tests.bench.indexer_runs`; the last line is JSON.
"""

from __future__ import annotations

import asyncio
import statistics
import time
import uuid
from typing import TYPE_CHECKING, Any

from lodestone.indexer.v1 import index_run_service_pb2 as runs_pb2
from lodestone.indexer.v1 import index_run_service_pb2_grpc as runs_grpc
from tests.bench.figures import figure, print_measured, say
from tests.bench.indexer_rig import running
from tests.integration.samples import edit, write_many

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.bench.indexer_rig import Rig
    from tests.faults.cluster import Caller

_CALLS = 200
_BULK_NODES = 20_000
_ROUNDS = 5
_P99_GOAL_SECONDS = 0.1
_PAUSE_GOAL_SECONDS = 5.0
_SCOPED_GOAL = 1.0
_RUN_SECONDS = 600.0
_MODE = runs_pb2.IndexRun.Mode
_JOIN = runs_pb2.CreateIndexRunRequest.IfRunning.IF_RUNNING_JOIN


def measure(scratch: Path) -> dict[str, dict[str, Any]]:
    """Returns the figures; `scratch` is an empty folder."""
    write_many(scratch / "bulk", _BULK_NODES)
    write_many(scratch / "small", 50)
    with running(scratch, model="minilm") as rig:
        p99, pause = _asked(rig, _steer_beside_bulk)
    with running(scratch) as rig:
        ratio, claim_ratio = _asked(rig, _compare_scoped)
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


def _asked(
    rig: Rig, ask: Callable[[Rig, Caller], Awaitable[tuple[float, float]]]
) -> tuple[float, float]:
    """Returns what is measured of services that know both workspaces."""

    async def work() -> tuple[float, float]:
        async with rig.caller() as calls:
            await calls.create("bulk", "bulk")
            await calls.create("small", "small")
            return await ask(rig, calls)

    return asyncio.run(work())


async def _begin(calls: Caller, workspace: str, **fields: Any) -> runs_pb2.IndexRun:
    request = runs_pb2.CreateIndexRunRequest(
        parent=f"workspaces/{workspace}", request_id=str(uuid.uuid4()), **fields
    )
    response: runs_pb2.CreateIndexRunResponse = await _runs(calls).CreateIndexRun(request)
    return response.index_run


def _runs(calls: Caller) -> Any:
    return runs_grpc.IndexRunServiceStub(calls.channels[0])


async def _steer_beside_bulk(_rig: Rig, calls: Caller) -> tuple[float, float]:
    """Returns the p99 of queueing a run beside a bulk one, and the time that it takes to pause."""
    bulk = await _begin(calls, "bulk")
    await calls.wait(bulk, lambda row: row["forwards"] > 0, _RUN_SECONDS)
    took: list[float] = []
    for _ in range(_CALLS):
        started = time.perf_counter()
        await _begin(calls, "small", if_running=_JOIN)
        took.append(time.perf_counter() - started)
    p99 = sorted(took)[int(len(took) * 0.99) - 1]
    say(f"queueing a run beside a bulk one: p50 {statistics.median(took):.4f} s, p99 {p99:.4f} s")
    started = time.perf_counter()
    await _runs(calls).PauseIndexRun(runs_pb2.PauseIndexRunRequest(name=bulk.name))
    await calls.wait(bulk, lambda row: row["state"] == "paused")
    pause = time.perf_counter() - started
    say(f"a bulk run paused in {pause:.2f} s")
    return p99, pause


async def _compare_scoped(rig: Rig, calls: Caller) -> tuple[float, float]:
    """Returns the time of a scoped run over one edited file as a ratio to an incremental one's."""
    path = rig.roots / "bulk" / "part_000500.py"
    scoped: list[float] = []
    whole: list[float] = []
    forwards = 0

    async def run(**fields: Any) -> tuple[float, int]:
        started = time.perf_counter()
        row = await calls.wait(await _begin(calls, "bulk", **fields), timeout_seconds=_RUN_SECONDS)
        assert row["state"] == "succeeded", dict(row)
        return time.perf_counter() - started, row["forwards"]

    await run()
    for number in range(_ROUNDS):
        edit(path, "total = value + 500\n", f"total = value + 500\n    total += {number}\n")
        seconds, forwarded = await run(mode=_MODE.MODE_SCOPED, paths=[path.name])
        scoped.append(seconds)
        forwards = max(forwards, forwarded)
        edit(path, "total = value + 501\n", f"total = value + 501\n    total += {number}\n")
        seconds, _ = await run()
        whole.append(seconds)
    ratio = statistics.median(scoped) / statistics.median(whole)
    say(
        f"one edited file: scoped {statistics.median(scoped):.3f} s, "
        f"incremental {statistics.median(whole):.3f} s"
    )
    return ratio, forwards


if __name__ == "__main__":
    print_measured(measure)
