"""The index over vectors: built when it is worth it, used while it finds what a scan finds."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pgvector import HalfVector

from services.indexer.search.model import SearchFilter
from services.indexer.storage.marks import Disagreement, Mark, MarkStore, put_back
from services.indexer.storage.search import SearchStore
from services.indexer.storage.vector_index import NEAREST, Partition, VectorIndexes
from tests.integration.replicas import DIMENSIONS, MODEL, Replica, replica, workspace_with_model

if TYPE_CHECKING:
    from services.indexer.model import RegisteredModel, Workspace
    from services.indexer.storage.database import Database

_NODES = 2000
_K = 10
_ALL = SearchFilter()
_FILES = """
INSERT INTO files (workspace_id, path, state, digest, recipe, language, line_count, size,
  mtime_ns, ctime_ns, inode, settled)
VALUES ($1, 'a.py', 'indexed', decode(repeat('00', 32), 'hex'), 'r', 'python', 1, 1, 1, 1, 1, true)
RETURNING id
"""
_FILL = """
WITH made AS (INSERT INTO nodes (workspace_id, id, file_id, generation, ordinal, kind,
  qualified_name, start_byte, end_byte, start_line, end_line, part, part_count, token_estimate,
  content_hash, status)
SELECT $1, nextval('node_ids'), $2, 1, i, 'function', 'n' || i, 0, 1, 1, 1, 0, 1, 1,
  decode(lpad(to_hex(i), 64, '0'), 'hex'), 'embedded' FROM generate_series(1, $3::int) i
RETURNING id)
INSERT INTO node_vectors_m1 (workspace_id, node_id, fence, content_hash, embedding)
SELECT $1, id, 1, decode(repeat('00', 32), 'hex'),
  l2_normalize(array_to_vector(ARRAY[random() - 0.5, random() - 0.5, random() - 0.5,
    random() - 0.5]::real[], 4, true)::halfvec) FROM made
"""


@pytest.fixture
async def filled(database: Database) -> tuple[Replica, Workspace, RegisteredModel]:
    """A workspace with many vectors, and none of its runs at work."""
    stores = replica(database)
    workspace, model = await workspace_with_model(stores)
    async with database.connection() as connection:
        file_id = await connection.fetchval(_FILES, workspace.id)
        await connection.execute(_FILL, workspace.id, file_id, _NODES)
        await connection.execute("ANALYZE node_vectors_m1_w1")
    return stores, workspace, model


def indexes(database: Database, **options: Any) -> VectorIndexes:
    return VectorIndexes(database, **{"least_nodes": 1000, "least_recall": 0.98, **options})


def question(seed: int) -> bytes:
    vector = np.random.default_rng(seed).normal(size=DIMENSIONS)
    return bytes((vector / np.linalg.norm(vector)).astype("<f2").tobytes())


async def test_an_index_is_built_measured_and_finds_what_a_scan_finds(
    filled: tuple[Replica, Workspace, RegisteredModel],
) -> None:
    stores, workspace, model = filled
    database = stores.database
    built = indexes(database)
    assert await built.probes(workspace.id, model.id) is None

    assert await built.step() == 1
    assert await built.step() == 0

    assert await built.probes(workspace.id, model.id) in {10, 20}
    assert await stores.value("SELECT recall FROM vector_indexes") >= 0.98
    by_scan, by_index = SearchStore(database), SearchStore(database, built)
    shared = 0
    for seed in range(30):
        exact = await by_scan.dense(workspace.id, model.id, question(seed), _ALL, _K)
        found = await by_index.dense(workspace.id, model.id, question(seed), _ALL, _K)
        assert len(found) == _K
        assert [item.score for item in found] == sorted(
            (item.score for item in found), reverse=True
        )
        shared += len({item.node_id for item in exact} & {item.node_id for item in found})
    assert shared >= 0.98 * 30 * _K
    async with database.connection() as connection:
        within = Partition("node_vectors_m1", workspace.id, active_model=model.id)
        plan = await connection.fetch(
            "EXPLAIN " + NEAREST.format(table=within.table, condition=within.condition),
            HalfVector([1.0] + [0.0] * (DIMENSIONS - 1)),
            _K,
            "10",
        )
        kept = await connection.fetchval("SELECT current_setting('ivfflat.probes', true)")
    assert "node_vectors_m1_w1_lists" in "".join(row[0] for row in plan)
    assert kept in {None, "", "1"}


async def test_an_index_that_finds_less_than_it_did_is_told_and_built_anew(
    filled: tuple[Replica, Workspace, RegisteredModel],
) -> None:
    """As when vectors changed since it was measured.

    Planted once: an index that is measured again, and not built; one that is told and still read.
    """
    stores, workspace, model = filled
    built = indexes(stores.database)
    assert await built.finds_enough(workspace.id, model.id) is None
    await built.step()
    assert await built.finds_enough(workspace.id, model.id) is True
    before = await stores.value("SELECT pg_relation_filenode('node_vectors_m1_w1_lists')")
    await stores.value("UPDATE vector_indexes SET probes = 1")
    assert await built.finds_enough(workspace.id, model.id) is False

    marks = MarkStore(stores.database)
    await marks.mark(workspace.id, [Mark("", Disagreement.LISTS_WRONG)])
    async with stores.database.transaction() as connection:
        assert await put_back(connection, workspace.id, model.id) == []
    assert await indexes(stores.database).probes(workspace.id, model.id) is None
    assert await built.step() == 1

    assert await built.finds_enough(workspace.id, model.id) is True
    assert await stores.value("SELECT pg_relation_filenode('node_vectors_m1_w1_lists')") != before


async def test_a_filter_misses_nothing_because_of_the_index(
    filled: tuple[Replica, Workspace, RegisteredModel],
) -> None:
    """Red when the filtered scan orders by the operator that the index has."""
    stores, workspace, model = filled
    built = indexes(stores.database)
    await built.step()
    store = SearchStore(stores.database, built)
    only = SearchFilter(symbols=tuple(f"n{number}" for number in range(1, _NODES, 200)))

    found = await store.dense(workspace.id, model.id, question(0), only, _K)

    assert len(found) == _K


async def test_deleted_nodes_in_the_index_leave_no_gap(
    filled: tuple[Replica, Workspace, RegisteredModel],
) -> None:
    stores, workspace, model = filled
    built = indexes(stores.database)
    await built.step()
    store = SearchStore(stores.database, built)
    near = await store.dense(workspace.id, model.id, question(1), _ALL, 1500)
    async with stores.database.connection() as connection:
        await connection.execute(
            "DELETE FROM nodes WHERE id = ANY ($1)", [item.node_id for item in near]
        )

    found = await store.dense(workspace.id, model.id, question(1), _ALL, 100)
    scanned = await SearchStore(stores.database).dense(
        workspace.id, model.id, question(1), _ALL, 100
    )

    assert len(found) == 100
    same = {item.node_id for item in found} & {item.node_id for item in scanned}
    assert len(same) >= 98


async def test_an_index_that_finds_too_little_is_not_used(
    filled: tuple[Replica, Workspace, RegisteredModel],
) -> None:
    stores, workspace, model = filled
    built = indexes(stores.database, least_recall=1.01)

    await built.step()

    assert await built.probes(workspace.id, model.id) is None
    assert await stores.value("SELECT count(*) FROM vector_indexes WHERE probes IS NULL") == 1


async def test_one_that_was_left_half_built_is_built_anew(
    filled: tuple[Replica, Workspace, RegisteredModel],
) -> None:
    stores, workspace, model = filled
    async with stores.database.connection() as connection:
        await connection.execute(
            "CREATE INDEX node_vectors_m1_w1_lists ON node_vectors_m1_w1 "
            "USING ivfflat (embedding halfvec_ip_ops)"
        )
        await connection.execute(
            "UPDATE pg_index SET indisvalid = false "
            "WHERE indexrelid = 'node_vectors_m1_w1_lists'::regclass"
        )
    built = indexes(stores.database)

    assert await built.step() == 1

    assert await built.probes(workspace.id, model.id) is not None
    assert await stores.value(
        "SELECT indisvalid FROM pg_index WHERE indexrelid = 'node_vectors_m1_w1_lists'::regclass"
    )


async def test_nothing_is_built_while_a_run_fills_the_workspace_or_by_two_at_once(
    filled: tuple[Replica, Workspace, RegisteredModel],
) -> None:
    stores, workspace, _ = filled
    run = await stores.queue(workspace)
    assert await indexes(stores.database).step() == 0
    taken = await stores.take()
    assert taken.id == run.id
    await stores.ledger.finish(taken, None)

    done = await asyncio.gather(*(indexes(stores.database).step() for _ in range(2)))

    assert sum(done) == 1
    assert await indexes(stores.database, least_nodes=0).step() == 0


async def test_equal_vectors_at_the_end_of_an_answer_are_chosen_as_a_scan_chooses_them(
    filled: tuple[Replica, Workspace, RegisteredModel],
) -> None:
    """Copies of one text have one vector: the earliest of them are found, however often built.

    Red when the index is asked for as many nodes as the answer has.
    """
    stores, workspace, model = filled
    asked = question(1)
    vector = HalfVector(np.frombuffer(asked, dtype="<f2")).to_text()
    await stores.value(
        "UPDATE node_vectors_m1 SET embedding = (SELECT embedding FROM node_vectors_m1 "
        f"ORDER BY embedding <#> '{vector}' LIMIT 1) WHERE node_id IN "
        "(SELECT node_id FROM node_vectors_m1 ORDER BY random() LIMIT 40)"
    )
    scanned = await SearchStore(stores.database).dense(workspace.id, model.id, asked, _ALL, _K)
    assert len({item.score for item in scanned}) == 1

    for _ in range(3):
        built = indexes(stores.database)
        assert await built.step() == 1
        found = await SearchStore(stores.database, built).dense(
            workspace.id, model.id, asked, _ALL, _K
        )
        assert found == scanned
        await stores.value("UPDATE vector_indexes SET probes = NULL, nodes = 0")


async def test_vectors_that_no_index_takes_are_scanned_and_hold_up_no_other(
    filled: tuple[Replica, Workspace, RegisteredModel],
) -> None:
    """Red when an index over them is wanted, which PostgreSQL refuses: none was built any more."""
    stores, workspace, model = filled
    large = replace(MODEL, name="models/large", fingerprint="a" * 64, dimensions=4096)
    wide = await stores.workspaces.register_model(large)
    await stores.queue(workspace)
    run = await stores.take()
    await stores.models.add(workspace, wide)
    await stores.value(
        f"""
        WITH made AS (
          INSERT INTO node_vectors_m{wide.id}
            (workspace_id, node_id, fence, content_hash, embedding)
          SELECT workspace_id, id, 1, content_hash,
            array_to_vector(array_fill(1::real, ARRAY[4096]), 4096, true)::halfvec
          FROM nodes ORDER BY id LIMIT 20 RETURNING 1)
        SELECT count(*) FROM made
        """
    )
    await stores.ledger.finish(run, None)
    await stores.ledger.finish(await stores.take(), None)
    async with stores.database.connection() as connection:
        await connection.execute(f"ANALYZE node_vectors_m{wide.id}_w{workspace.id}")
    built = indexes(stores.database, least_nodes=20)

    assert await built.step() == 1
    assert await built.step() == 0

    assert await built.probes(workspace.id, model.id) is not None
    assert await built.probes(workspace.id, wide.id) is None
