"""What a batch costs is its own rows: claims, beats and commits beside 20,000 nodes of a workspace.

Statements are not looked at one by one: the stores run, and PostgreSQL tells what was read.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from services.indexer.model import Failure
from services.indexer.run import RunMode
from services.indexer.storage.database import Database
from services.indexer.storage.unused_texts import UnusedTexts
from tests.integration.plans import fill
from tests.integration.replicas import (
    MODEL,
    Replica,
    content,
    parsed_file,
    replica,
    workspace_with_model,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from services.indexer.model import RegisteredModel, Workspace

_BATCH = 100
_OTHERS = 5000
_AGAIN = Failure("ERROR_REASON_DEPENDENCY_UNAVAILABLE", "later")
_TABLES = (
    "nodes",
    "files",
    "runs",
    "run_nodes",
    "run_outcomes",
    "model_nodes",
    "embedding_cache",
    "content_terms",
    "unused_texts",
)
_PARTITIONS = "^(node_terms|node_vectors_m\\d+|node_references)_w\\d+$"
_MORE = f"""
INSERT INTO embedding_cache (model_id, content_hash, embedding, token_count, truncated)
SELECT m.id, content_hash, '[1,2,3,4]', 3, false FROM nodes, models m;
INSERT INTO content_terms (content_hash, terms, counts, length)
SELECT content_hash, ARRAY['word'], ARRAY[1], 1 FROM nodes;
INSERT INTO run_outcomes (workspace_id, run_id, entity, path, result, stage)
SELECT 1, id, 'file', 'f' || seq, 'ok', 'parse' FROM runs;
INSERT INTO run_nodes (workspace_id, run_id, node_id, given)
SELECT n.workspace_id, r.id, n.id, true FROM nodes n,
  (SELECT id FROM runs ORDER BY seq LIMIT 1) r WHERE n.id % 100 < {_OTHERS // 200};
ANALYZE
"""


@pytest.fixture
async def stores(migrated_url: str) -> AsyncIterator[Replica]:
    """One call at a time takes one connection, which tells what it read when it is asked."""
    database = Database(migrated_url, connections=2, timeout_seconds=60)
    await database.open()
    yield replica(database)
    await database.close()


async def _large(stores: Replica) -> tuple[Workspace, RegisteredModel, RegisteredModel]:
    """Returns a workspace of 20,000 nodes with two models: nodes wait, or are embedded."""
    workspace, first = await workspace_with_model(stores)
    second = await stores.workspaces.register_model(
        replace(MODEL, name="models/second", fingerprint="a" * 64)
    )
    async with stores.database.connection() as connection:
        await fill(connection)
        await connection.execute(_MORE)
    await stores.models.add(workspace, second)
    await stores.value("ANALYZE model_nodes")
    return workspace, first, second


async def _read(stores: Replica) -> dict[str, tuple[int, int]]:
    """Returns how many rows of each table were read by scans of all of it, and by indexes."""
    await stores.value("SELECT pg_stat_force_next_flush()")
    async with stores.database.connection() as connection:
        rows = await connection.fetch(
            """
            SELECT t.relname, t.seq_tup_read, (SELECT coalesce(sum(i.idx_tup_read), 0)::bigint
              FROM pg_stat_user_indexes i WHERE i.relid = t.relid) AS keyed
            FROM pg_stat_user_tables t WHERE t.relname = ANY ($1) OR t.relname ~ $2
            """,
            _TABLES,
            _PARTITIONS,
        )
    return {row["relname"]: (row["seq_tup_read"], row["keyed"]) for row in rows}


async def _read_since(
    stores: Replica, before: dict[str, tuple[int, int]]
) -> tuple[dict[str, int], int]:
    """Returns the tables that were read as a whole, with how many rows, and rows by indexes."""
    now = await _read(stores)
    whole = {name: seq - before[name][0] for name, (seq, _) in now.items()}
    keyed = sum(keyed - before[name][1] for name, (_, keyed) in now.items())
    return {name: rows for name, rows in whole.items() if rows}, keyed


@pytest.mark.parametrize("kind", ["of the workspace", "of a scope", "of a model beside"])
async def test_a_batch_reads_its_own_rows(stores: Replica, kind: str) -> None:
    """Red with a beat, a commit or a release that is joined freely to the nodes in work."""
    workspace, model, second = await _large(stores)
    if kind == "of a model beside":
        model = second
    else:
        await stores.value("DELETE FROM runs WHERE model_id IS NOT NULL RETURNING 1")
        waiting = await stores.value(
            "SELECT array_agg(id) FROM nodes WHERE status = 'pending' AND id % 100 < 50"
        )
        scoped = kind == "of a scope"
        mode = RunMode.SCOPED if scoped else RunMode.EMBED_ONLY
        await stores.queue(workspace, mode, node_ids=tuple(waiting) if scoped else ())
    run = await stores.take()
    queue = stores.nodes if run.model_id is None else stores.model_nodes
    await stores.value("DELETE FROM embedding_cache WHERE model_id = $1 RETURNING 1", model.id)
    before = await _read(stores)

    claimed = await queue.claim(run, 4 * (_BATCH // 4))
    await stores.ledger.beat(run)
    some, others = claimed[: _BATCH // 2], claimed[_BATCH // 2 :]
    await queue.adopt(run, model.id, some)
    contents = {n.content_hash: content(n.content_hash, model.dimensions) for n in some}
    await queue.complete(run, model.id, contents, some, {"fetch": 0.1})
    await queue.fail(run, {others[0].id: _AGAIN}, others, "embed", 5)
    await queue.release(run, others[1:])
    await stores.ledger.beat(run)
    whole, keyed = await _read_since(stores, before)

    assert len(claimed) == _BATCH
    assert whole == {}
    assert keyed < 60 * _BATCH


async def test_files_that_are_planned_read_their_own_rows(stores: Replica) -> None:
    workspace, model, _ = await _large(stores)
    await stores.value("DELETE FROM runs WHERE model_id IS NOT NULL RETURNING 1")
    await stores.queue(workspace)
    run = await stores.take()
    await stores.apply(run, model, parsed_file("new.py", *map(str, range(_BATCH))))
    before = await _read(stores)

    await stores.apply(run, model, parsed_file("new.py", *map(str, range(1, _BATCH))))
    await stores.files.remove(run, ["f7"])
    whole, keyed = await _read_since(stores, before)

    assert whole == {}
    assert keyed < 60 * _BATCH


async def test_a_sweep_of_unused_texts_reads_each_row_once(stores: Replica) -> None:
    """Red with a sweep that looks for each text through all nodes."""
    await _large(stores)
    rows = await stores.value(
        "SELECT (SELECT count(*) FROM nodes) + (SELECT count(*) FROM embedding_cache)"
    )
    await stores.value(
        "DELETE FROM nodes WHERE id % 100 = 7 AND status = 'embedded' RETURNING content_hash"
    )
    await stores.value("ANALYZE nodes")
    before = await _read(stores)

    await UnusedTexts(stores.database, keep_days=1, sweep_seconds=1).step()
    whole, keyed = await _read_since(stores, before)

    noted = await stores.value("SELECT count(*) FROM unused_texts")
    assert noted > 0
    assert sum(whole.values()) + keyed < 2 * rows
