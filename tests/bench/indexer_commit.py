"""The commit of a batch against the bare COPY of the same rows."""

from __future__ import annotations

import asyncio
import json
import shutil
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import numpy as np
from pgvector import HalfVector
from pgvector.asyncpg import register_vector

from services.indexer.model import EmbeddedContent, EmbedModel
from services.indexer.search.terms import content_terms, name_terms
from tests.bench.figures import figure, say
from tests.bench.indexer_stores import opened_database
from tests.integration.replicas import Replica, parsed_file, replica, workspace_with_model
from tests.support.postgres_server import running_server

if TYPE_CHECKING:
    from services.indexer.model import ClaimedNode, RegisteredModel
    from services.indexer.run import Run

_ROUNDS = 7
_BATCHES = 8
_NODES = 128
_GOAL = 0.6
_MODEL = EmbedModel("models/bench", "b" * 64, 384, 256, 256)
_TEXT = """def {name}(client, ledger):
    \"\"\"Returns the balance of a client and its ledger number {number}.\"\"\"
    balance = client.ledger({number})
    if not balance:
        raise ValueError("account {number} has no balance")
    return balance
"""

_BARE = """
CREATE TABLE bare_vectors (workspace_id int, node_id bigint, fence bigint, content_hash bytea,
  embedding halfvec({dimensions}), PRIMARY KEY (workspace_id, node_id));
CREATE TABLE bare_terms (workspace_id int, node_id bigint, fence bigint, terms text[], counts int[],
  length int, name_terms text[], PRIMARY KEY (workspace_id, node_id));
CREATE TABLE bare_cache (model_id int, content_hash bytea, embedding halfvec, token_count int,
  truncated boolean, PRIMARY KEY (model_id, content_hash));
CREATE TABLE bare_content_terms (content_hash bytea PRIMARY KEY, terms text[], counts int[],
  length int);
CREATE TABLE bare_status (workspace_id int, node_id bigint, status text, attempt int,
  fence bigint, embedded_run uuid, updated_at timestamptz, PRIMARY KEY (workspace_id, node_id));
CREATE TABLE bare_outcomes (workspace_id int, run_id uuid, path text, result text, stage text,
  attempts int, seconds float8, recorded_at timestamptz, PRIMARY KEY (workspace_id, run_id, path));
CREATE INDEX ON bare_terms USING gin (terms);
CREATE INDEX ON bare_terms USING gin (name_terms)
"""


def measure(scratch: Path) -> dict[str, dict[str, Any]]:
    """Returns rows a second of both, and their ratio; rounds are interleaved."""
    del scratch  # PostgreSQL has a folder of its own, which its account can enter
    with running_server() as server:
        return asyncio.run(_measure(server.url))


async def _measure(url: str) -> dict[str, dict[str, Any]]:
    async with opened_database(url, timeout_seconds=120) as database:
        stores = replica(database)
        workspace, _ = await workspace_with_model(stores)
        await stores.queue(workspace)
        run = await stores.take()
        model = await stores.workspaces.register_model(_MODEL)
        await stores.workspaces.activate(run, model, stores.ledger)
        bare = await asyncpg.connect(url)
        await register_vector(bare)
        await bare.execute(_BARE.format(dimensions=model.dimensions))
        ours, theirs = [], []
        for number in range(_ROUNDS):
            batches = await _claimed(stores, run, model, number)
            ours.append(await _complete(stores, run, model, batches))
            theirs.append(await _copy(bare, run, batches))
        await bare.close()
        rows = _BATCHES * _NODES
        ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
    return {
        "commit_nodes_per_second": figure(rows / statistics.median(ours)),
        "commit_bare_copy_nodes_per_second": figure(rows / statistics.median(theirs)),
        "commit_to_bare_copy": figure(ratio, _GOAL, met=ratio >= _GOAL),
    }


def _texts(number: int) -> list[str]:
    return [f"{number}-{at}" for at in range(_BATCHES * _NODES)]


async def _claimed(
    stores: Replica, run: Run, model: RegisteredModel, number: int
) -> list[list[ClaimedNode]]:
    """Returns batches of claimed nodes that are new to the database."""
    texts = _texts(number)
    for start in range(0, len(texts), 32):
        path = f"round_{number}/part_{start}.py"
        await stores.apply(run, model, parsed_file(path, *texts[start : start + 32]))
    return [await stores.nodes.claim(run, _NODES) for _ in range(_BATCHES)]


def _contents(batch: list[ClaimedNode], dimensions: int) -> dict[bytes, EmbeddedContent]:
    """Returns what each text became: a vector and as many terms as a small function has."""
    vector = np.linspace(-1, 1, dimensions).astype("<f2").tobytes()
    return {
        node.content_hash: EmbeddedContent(
            node.content_hash,
            vector,
            60,
            truncated=False,
            terms=content_terms(_TEXT.format(name=f"balance_{node.id}", number=node.id)),
        )
        for node in batch
    }


async def _complete(
    stores: Replica, run: Run, model: RegisteredModel, batches: list[list[ClaimedNode]]
) -> float:
    contents = [_contents(batch, model.dimensions) for batch in batches]
    started = time.perf_counter()
    for batch, became in zip(batches, contents, strict=True):
        await stores.nodes.complete(run, model.id, became, batch, {})
    return time.perf_counter() - started


async def _copy(
    connection: asyncpg.Connection, run: Run, batches: list[list[ClaimedNode]]
) -> float:
    """COPYs the same vectors, terms, cache rows, status and outcomes, a transaction a batch."""
    records = [_records(run, batch) for batch in batches]
    started = time.perf_counter()
    for tables in records:
        async with connection.transaction():
            for table, rows in tables.items():
                await connection.copy_records_to_table(table, records=rows)
    return time.perf_counter() - started


def _records(run: Run, batch: list[ClaimedNode]) -> dict[str, list[tuple[Any, ...]]]:
    """Returns the rows that a batch leaves: not those of the nodes themselves but their status."""
    now = datetime.now(UTC)
    tables: dict[str, list[tuple[Any, ...]]] = {
        "bare_vectors": [],
        "bare_terms": [],
        "bare_cache": [],
        "bare_content_terms": [],
        "bare_status": [],
        "bare_outcomes": [
            (1, run.id, path, "ok", "parse", 1, 0.01, now)
            for path in sorted({node.path for node in batch})
        ],
    }
    contents = _contents(batch, _MODEL.dimensions)
    for node in batch:
        item = contents[node.content_hash]
        vector = HalfVector(np.frombuffer(item.vector, dtype="<f2"))
        terms, counts = list(item.terms), list(item.terms.values())
        names = list(name_terms(node.path, node.qualified_name))
        tables["bare_vectors"].append((1, node.id, node.fence, node.content_hash, vector))
        tables["bare_terms"].append((1, node.id, node.fence, terms, counts, sum(counts), names))
        tables["bare_status"].append((1, node.id, "embedded", 1, node.fence, run.id, now))
        tables["bare_cache"].append((1, node.content_hash, vector, item.token_count, False))
        tables["bare_content_terms"].append((node.content_hash, terms, counts, sum(counts)))
    return tables


def main() -> None:
    """Measures; the last line is JSON."""
    scratch = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        result = measure(scratch)
        say(f"commit: {result['commit_to_bare_copy']['value']} of bare COPY")
        sys.stdout.write(json.dumps(result) + "\n")
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
