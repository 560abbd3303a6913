"""The latency of a claim, with few and with many nodes that wait."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.bench.figures import figure, say
from tests.bench.indexer_stores import opened_database
from tests.integration.replicas import Replica, replica, workspace_with_model
from tests.support.postgres_server import running_server

if TYPE_CHECKING:
    from services.indexer.run import Run

FEW, MANY = 1_000, int(os.environ.get("LODESTONE_BENCH_PENDING", "1000000"))
_CLAIM_NODES = 128
_ROUNDS = 40
_MOST_RATIO = 2.0

FILES = """
INSERT INTO files (workspace_id, path, state, digest, recipe, language, line_count, size,
  mtime_ns, ctime_ns, inode, settled)
SELECT $1, 'f' || lpad(i::text, 8, '0'), 'indexed', decode(repeat('00', 32), 'hex'), 'r', 'python',
  1, 1, 1, 1, 1, true FROM generate_series(1, $2 / 10) i
"""
"""Files of recipe `r`, for $2 nodes of ten each."""

_NODES = """
INSERT INTO nodes (workspace_id, id, file_id, generation, ordinal, kind, qualified_name, start_byte,
  end_byte, start_line, end_line, part, part_count, token_estimate, content_hash)
SELECT $1, nextval('node_ids'), f.id, 1, o, 'function', 'n', 0, 1, 1, 1, 0, 1, 1,
  decode(lpad(to_hex(f.id * 10 + o), 64, '0'), 'hex')
FROM files f, generate_series(0, 9) o WHERE f.workspace_id = $1
"""


def measure(scratch: Path) -> dict[str, dict[str, Any]]:
    """Returns the median claim at both depths, claimed and given back in turn."""
    del scratch  # PostgreSQL has a folder of its own, which its account can enter
    with running_server() as server:
        return asyncio.run(_measure(server.url))


async def _measure(url: str) -> dict[str, dict[str, Any]]:
    async with opened_database(url, timeout_seconds=600) as database:
        stores = replica(database)
        runs = [
            await _filled(stores, "few-pending", FEW),
            await _filled(stores, "many-pending", MANY),
        ]
        async with database.connection() as connection:
            await connection.execute("VACUUM ANALYZE nodes")
        seconds: list[list[float]] = [[], []]
        for _ in range(_ROUNDS):
            for times, run in zip(seconds, runs, strict=True):
                times.append(await _claim(stores, run))
        few, many = (statistics.median(times) * 1000 for times in seconds)
    return {
        "claim_milliseconds_of_1k_pending": figure(few),
        "claim_milliseconds_of_many_pending": figure(many),
        "claim_many_pending": figure(MANY),
        "claim_many_to_1k": figure(many / few, _MOST_RATIO, met=many / few <= _MOST_RATIO),
    }


async def _filled(stores: Replica, name: str, nodes: int) -> Run:
    workspace, _ = await workspace_with_model(stores, name)
    await stores.queue(workspace)
    run = await stores.take()
    async with stores.database.connection() as connection:
        await connection.execute(FILES, workspace.id, nodes, timeout=600)
        # Without it each row's foreign key is checked by a scan of all files.
        await connection.execute("ANALYZE files")
        await connection.execute(_NODES, workspace.id, timeout=600)
    return run


async def _claim(stores: Replica, run: Run) -> float:
    """Returns the seconds of a claim; the nodes are given back, so that the depth stays."""
    started = time.perf_counter()
    claimed = await stores.nodes.claim(run, _CLAIM_NODES)
    seconds = time.perf_counter() - started
    assert len(claimed) == _CLAIM_NODES
    await stores.nodes.release(run, claimed)
    return seconds


def main() -> None:
    """Measures; the last line is JSON."""
    scratch = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        result = measure(scratch)
        say(f"claims: many to few {result['claim_many_to_1k']['value']}")
        sys.stdout.write(json.dumps(result) + "\n")
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
