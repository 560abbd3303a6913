"""The first and the last page of every list, over gRPC, of lists that are long.

Pages go on behind what the one before ended with, so the last one costs what the first does; with
an offset it would cost the whole list.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lodestone.indexer.v1 import (
    index_run_service_pb2,
    index_run_service_pb2_grpc,
    queue_service_pb2,
    queue_service_pb2_grpc,
    workspace_service_pb2,
    workspace_service_pb2_grpc,
)
from services.runtime.channel import connect
from tests.bench.figures import figure, print_measured, say
from tests.bench.generate import write_tree
from tests.bench.indexer_claims import FILES
from tests.bench.indexer_rig import running

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import grpc

    from tests.bench.indexer_rig import Rig

_NAME = "pages"
_PAGE = 100
_RUNS, _WORKSPACES, _OUTCOMES, _FAILED = 20_000, 20_000, 100_000, 100_000
_ROUNDS = 40
_MOST_RATIO = 2.0

_FILL = (
    f"""
    INSERT INTO runs (workspace_id, request_id, request_digest, mode, state, finished_at)
    SELECT 1, gen_random_uuid(), '', 'incremental', 'succeeded', now()
    FROM generate_series(1, {_RUNS})
    """,
    f"""
    INSERT INTO workspaces (name, root, directory)
    SELECT 'many-' || lpad(i::text, 6, '0'), 'roots/trees', 'many/' || i
    FROM generate_series(1, {_WORKSPACES}) i
    """,
    f"""
    INSERT INTO run_outcomes (workspace_id, run_id, entity, path, result, stage)
    SELECT 1, id, 'file', 'f' || lpad(i::text, 8, '0'), 'ok', 'parse'
    FROM (SELECT id FROM runs WHERE workspace_id = 1 ORDER BY seq LIMIT 1) r,
      generate_series(1, {_OUTCOMES}) i
    """,
    "ANALYZE",
    """
    INSERT INTO nodes (workspace_id, id, file_id, generation, ordinal, kind, qualified_name,
      start_byte, end_byte, start_line, end_line, part, part_count, token_estimate, content_hash,
      status, error_reason, error_message)
    SELECT 1, nextval('node_ids'), f.id, 1, o, 'function', 'n', 0, 1, 1, 1, 0, 1, 1,
      decode(lpad(to_hex(f.id * 10 + o), 64, '0'), 'hex'), 'failed',
      'ERROR_REASON_INVALID_VECTOR', 'The model gave no vector.'
    FROM files f, generate_series(0, 9) o WHERE f.workspace_id = 1 AND f.recipe = 'r'
    """,
    "VACUUM ANALYZE",
)


@dataclass(frozen=True, slots=True)
class _List:
    """A list: its call, its request without a page, and the field of its items."""

    name: str
    call: Callable[[Any], Any]
    request: Any
    items: str


def measure(scratch: Path) -> dict[str, dict[str, Any]]:
    """Returns the last page's time to the first's, of each list."""
    with running(scratch) as rig:
        write_tree(scratch / _NAME, files=2, functions=1, seed=1)
        rig.create(_NAME, _NAME)
        rig.index(_NAME)
        rig.rows(FILES, 1, _FAILED)
        for statement in _FILL:
            rig.rows(statement)
        ((run,),) = rig.rows("SELECT id FROM runs WHERE workspace_id = 1 ORDER BY seq LIMIT 1")
        return asyncio.run(_measure(rig, f"workspaces/{_NAME}/indexRuns/{run}"))


async def _measure(rig: Rig, run: str) -> dict[str, dict[str, Any]]:
    figures: dict[str, dict[str, Any]] = {}
    async with connect(rig.indexer.address) as channel:
        for each in _lists(channel, run):
            token, count = await _last_token(each)
            first, last = [], []
            for _ in range(_ROUNDS):
                first.append(await _seconds(each, ""))
                last.append(await _seconds(each, token))
            ratio = statistics.median(last) / statistics.median(first)
            say(
                f"{each.name} of {count}: first page {statistics.median(first) * 1000:.1f} ms, "
                f"last {statistics.median(last) * 1000:.1f} ms"
            )
            name = f"pages_{each.name}_last_to_first"
            figures[name] = figure(ratio, _MOST_RATIO, met=ratio <= _MOST_RATIO)
    return figures


def _lists(channel: grpc.aio.Channel, run: str) -> list[_List]:
    runs: Any = index_run_service_pb2_grpc.IndexRunServiceStub(channel)
    queue: Any = queue_service_pb2_grpc.QueueServiceStub(channel)
    workspaces: Any = workspace_service_pb2_grpc.WorkspaceServiceStub(channel)
    parent = f"workspaces/{_NAME}"
    all_runs = index_run_service_pb2.ListIndexRunsRequest(parent="workspaces/-", page_size=_PAGE)
    own = index_run_service_pb2.ListIndexRunsRequest(parent=parent, page_size=_PAGE)
    outcomes = index_run_service_pb2.ListIndexRunOutcomesRequest(parent=run, page_size=_PAGE)
    failed = queue_service_pb2.ListFailedNodesRequest(parent=parent, page_size=_PAGE)
    every = workspace_service_pb2.ListWorkspacesRequest(page_size=_PAGE)
    return [
        _List("runs", runs.ListIndexRuns, own, "index_runs"),
        _List("runs_of_all", runs.ListIndexRuns, all_runs, "index_runs"),
        _List("outcomes", runs.ListIndexRunOutcomes, outcomes, "outcomes"),
        _List("failed_nodes", queue.ListFailedNodes, failed, "nodes"),
        _List("workspaces", workspaces.ListWorkspaces, every, "workspaces"),
    ]


async def _last_token(each: _List) -> tuple[str, int]:
    """Returns the token of the last full page, and how many items there are up to its end."""
    before, token, count = "", "", 0
    while True:
        page = await _page(each, token)
        count += len(getattr(page, each.items))
        if not page.next_page_token or len(getattr(page, each.items)) < _PAGE:
            return (token if len(getattr(page, each.items)) == _PAGE else before), count
        before, token = token, page.next_page_token


async def _page(each: _List, token: str) -> Any:
    request = type(each.request)()
    request.CopyFrom(each.request)
    request.page_token = token
    return await each.call(request)


async def _seconds(each: _List, token: str) -> float:
    started = time.perf_counter()
    page = await _page(each, token)
    seconds = time.perf_counter() - started
    assert len(getattr(page, each.items)) == _PAGE
    return seconds


if __name__ == "__main__":
    print_measured(measure)
