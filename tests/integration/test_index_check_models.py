"""A check looks at the vectors of each model of a workspace, and a repair redoes those of one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from lodestone.indexer.v1 import maintenance_service_pb2 as maintenance_pb2
from services.indexer.storage.marks import Disagreement, Mark, MarkStore
from tests.integration.indexing import Mode, State, indexing
from tests.integration.oracle import broken_rules, check
from tests.integration.replicas import MODEL, parsed_file, replica, workspace_with_model
from tests.integration.two_models import (
    SMALL,
    TREE,
    add_small,
    maintenance,
    runs_ended,
    two_models,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from services.indexer.storage.database import Database
    from tests.integration.hooks import Hook
    from tests.integration.indexing import Indexing

_NODES = 20
_HASHING = "models/hashing"
_ACTIVE, _BESIDE = 1, 2


def _damages(model: int, name: str) -> dict[str, str]:
    """Returns statements that spoil a model's vector of the node of a name."""
    table = f"node_vectors_m{model}"
    node = f"(SELECT id FROM nodes WHERE qualified_name = '{name}')"
    text = f"(SELECT content_hash FROM nodes WHERE qualified_name = '{name}')"
    other = f"(SELECT embedding FROM {table} WHERE node_id <> {node} ORDER BY node_id LIMIT 1)"
    return {
        "vector_missing": f"DELETE FROM {table} WHERE node_id = {node}",
        "vector_of_other_text": f"UPDATE {table} SET content_hash = "
        f"decode(repeat('ab', 32), 'hex') WHERE node_id = {node}",
        "vector_wrong": f"UPDATE {table} SET embedding = {other} WHERE node_id = {node}",
        "not_embedded_but_indexed": "INSERT INTO model_nodes (workspace_id, model_id, node_id) "
        f"VALUES (1, {model}, {node})",
        "cached": f"UPDATE embedding_cache SET embedding = {other} WHERE model_id = {model} "
        f"AND content_hash = {text}",
    }


@pytest.fixture
async def services(
    roots: Path, sockets: Path, migrated_url: str, hook: Hook
) -> AsyncIterator[Indexing]:
    """The tree has vectors of both models; search uses the first."""
    async with two_models(roots, sockets, migrated_url, hook, _NODES) as running:
        await add_small(maintenance(running))
        await runs_ended(running)
        hook.calls.clear()
        yield running


Found = list[tuple[str, str, str]]


async def _check(services: Indexing, **fields: Any) -> tuple[Found, list[str]]:
    """Returns kind, name and model of what disagrees, and which models were left out."""
    request = maintenance_pb2.CheckIndexRequest(parent=TREE, **fields)
    found: Found = []
    left_out: list[str] = []
    async for response in maintenance(services).CheckIndex(request):
        left_out += response.left_out
        found += [(item.kind, item.qualified_name, item.model) for item in response.disagreements]
        assert all(bool(item.fingerprint) == bool(item.model) for item in response.disagreements)
    return found, left_out


async def _damage(services: Indexing, *statements: str) -> None:
    connection = await asyncpg.connect(services.url)
    try:
        for statement in statements:
            assert not (await connection.execute(statement)).endswith(" 0"), statement
    finally:
        await connection.close()


async def _fences(services: Indexing) -> dict[tuple[int, str], int]:
    """Returns the fence of each vector, which a new vector has another of, by model and node."""
    connection = await asyncpg.connect(services.url)
    fences = {
        (model, row["qualified_name"]): row["fence"]
        for model in (_ACTIVE, _BESIDE)
        for row in await connection.fetch(
            f"SELECT n.qualified_name, v.fence FROM node_vectors_m{model} v "
            "JOIN nodes n ON n.workspace_id = v.workspace_id AND n.id = v.node_id"
        )
    }
    await connection.close()
    assert len(fences) == 2 * _NODES
    return fences


async def _repaired(services: Indexing) -> int:
    """Makes a repair run, waits until no run is left, and returns how many nodes it was over."""
    run = await services.run("tree", Mode.MODE_REPAIR)
    assert run.state == State.STATE_SUCCEEDED, run
    await runs_ended(services)
    assert await _check(services, sample_ratio=1.0, mark=True) == ([], [])
    assert await broken_rules(services.url) == []
    await check(services, "tree", "tree")
    return int(run.progress.nodes_total)


def _changed(before: dict[tuple[int, str], int], now: dict[tuple[int, str], int]) -> set[Any]:
    return {key for key, fence in now.items() if before[key] != fence}


async def test_vectors_of_a_model_beside_are_found_and_made_again_alone(
    services: Indexing, hook: Hook
) -> None:
    """Red with a check of the active model alone, and with marks that tell no model.

    Red as well when its vectors are not sampled, and with a cache that keeps what is wrong.
    """
    before = await _fences(services)
    kinds = [kind for kind in _damages(0, "") if kind != "cached"]
    for number, kind in enumerate(kinds):
        await _damage(services, _damages(_BESIDE, f"work_{number}")[kind])
    text = _damages(_BESIDE, "work_9")
    await _damage(services, text["vector_wrong"], text["cached"])

    first, _ = await _check(services)
    found, left_out = await _check(services, sample_ratio=1.0, mark=True)
    hook.calls.clear()
    nodes = await _repaired(services)

    expected = [(kind, f"work_{number}", SMALL) for number, kind in enumerate(kinds)]
    assert sorted(first) == sorted(expected), "the cache agrees with the table"
    assert set(found) == {*expected, ("vector_wrong", "work_9", SMALL)}
    assert left_out == []
    assert nodes == 0, "the run over the active model has nothing to do"
    assert len(hook.texts) == 5 + 2 * _NODES, "what was marked, and two samples of all"
    assert _changed(before, await _fences(services)) == {
        (_BESIDE, f"work_{number}") for number in (0, 1, 2, 3, 9)
    }


async def test_a_repair_makes_vectors_again_with_the_model_that_they_are_marked_for(
    services: Indexing, hook: Hook
) -> None:
    """Red with marks that tell no model, or of which one overwrites that of another model."""
    before = await _fences(services)
    await _damage(
        services,
        _damages(_ACTIVE, "work_7")["vector_missing"],
        _damages(_BESIDE, "work_8")["vector_missing"],
        _damages(_ACTIVE, "work_9")["vector_missing"],
        _damages(_BESIDE, "work_9")["vector_of_other_text"],
    )

    found, _ = await _check(services, mark=True)
    nodes = await _repaired(services)

    assert sorted(found) == [
        ("vector_missing", "work_7", _HASHING),
        ("vector_missing", "work_8", SMALL),
        ("vector_missing", "work_9", _HASHING),
        ("vector_of_other_text", "work_9", SMALL),
    ]
    assert nodes == 2
    assert len(hook.texts) == 4 + 2 * _NODES
    assert _changed(before, await _fences(services)) == {
        (_ACTIVE, "work_7"),
        (_BESIDE, "work_8"),
        (_ACTIVE, "work_9"),
        (_BESIDE, "work_9"),
    }


async def test_a_mark_stays_that_of_its_model_when_search_is_switched_over(
    services: Indexing,
) -> None:
    """Red with marks of whichever model is active when the repair begins."""
    before = await _fences(services)
    await _damage(
        services,
        _damages(_ACTIVE, "work_7")["vector_wrong"],
        _damages(_BESIDE, "work_8")["vector_wrong"],
    )
    await _check(services, mark=True)
    await maintenance(services).ActivateWorkspaceModel(
        maintenance_pb2.ActivateWorkspaceModelRequest(parent=TREE, model=SMALL)
    )

    nodes = await _repaired(services)

    assert nodes == 1
    assert _changed(before, await _fences(services)) == {(_ACTIVE, "work_7"), (_BESIDE, "work_8")}


async def test_what_waits_for_a_model_disagrees_with_nothing_and_no_size_is_wrong(
    services: Indexing, hook: Hook, roots: Path
) -> None:
    """Red with a check to which each node without a vector is one that lost it.

    No table takes a vector of another dimension, so a check has none to look for.
    """
    hook.poison = "brand_new"
    new = roots / "tree" / "new.py"
    new.write_text("def brand_new(value):\n    return value\n")
    await services.run("tree")
    await runs_ended(services)

    found = await _check(services)

    assert found == ([], [])
    with pytest.raises(asyncpg.DataError, match="expected 32 dimensions, not 64"):
        await _damage(
            services,
            "UPDATE node_vectors_m2 SET embedding = "
            "(SELECT embedding FROM node_vectors_m1 LIMIT 1)",
        )


async def test_a_model_that_is_not_served_is_compared_by_its_rows(
    services: Indexing, sockets: Path
) -> None:
    """It is told that its vectors were not made again; the active model's were."""
    wrong = _damages(_ACTIVE, "work_7")
    await _damage(services, _damages(_BESIDE, "work_8")["vector_missing"])
    await _damage(services, wrong["vector_wrong"], wrong["cached"])
    await services.indexer.stop()
    (sockets / "b").mkdir()
    alone = {"model": "hashing:64"}
    async with indexing(services.roots, sockets / "b", services.url, embed_settings=alone) as again:
        found, left_out = await _check(again, sample_ratio=1.0)

    assert left_out == [SMALL]
    assert found == [("vector_missing", "work_8", SMALL), ("vector_wrong", "work_7", _HASHING)]


async def test_what_queues_hold_of_nothing_that_waits_is_found_and_removed(
    services: Indexing,
) -> None:
    """Red when queues are not looked at: whoever drained the queue waited for ever."""
    queue = "INSERT INTO model_nodes (workspace_id, model_id, node_id)"
    node = "(SELECT id FROM nodes ORDER BY id LIMIT 1)"
    await _damage(
        services,
        f"{queue} VALUES (1, {_BESIDE}, 999999)",
        f"{queue} VALUES (1, {_ACTIVE}, {node})",
        f"{queue} VALUES (1, 77, {node})",
    )

    found, _ = await _check(services, mark=True)
    told, _ = await _check(services)
    repaired = await services.run("tree", Mode.MODE_REPAIR)

    assert found == told == [("queue_wrong", "", "")]
    assert repaired.state == State.STATE_SUCCEEDED
    assert repaired.progress.nodes_total == 0
    assert await _check(services) == ([], [])
    assert await broken_rules(services.url) == []


async def test_a_model_that_goes_takes_its_marks_along_and_gets_no_more(
    database: Database,
) -> None:
    """Red without the foreign key, and with one that a check's mark breaks."""
    stores = replica(database)
    workspace, first = await workspace_with_model(stores)
    await stores.queue(workspace)
    run = await stores.take()
    await stores.apply(run, first, parsed_file("a.py", "a"))
    await stores.complete(run, first, await stores.nodes.claim(run, 9))
    second = await stores.workspaces.register_model(
        replace(MODEL, name="models/second", fingerprint="a" * 64)
    )
    await stores.models.add(workspace, second)
    marks = MarkStore(database)
    node = await stores.value("SELECT id FROM nodes")
    of_both = [
        Mark("a.py", Disagreement.VECTOR_WRONG, node, "a", model=model) for model in (first, second)
    ]

    await marks.mark(workspace.id, of_both)
    await marks.mark(workspace.id, of_both)
    marked = await stores.value("SELECT count(*) FROM model_marks")
    await stores.models.remove(workspace, second.id)
    left = await stores.value("SELECT array_agg(model_id) FROM model_marks")
    await marks.mark(workspace.id, of_both)

    assert (marked, left) == (2, [first.id])
    assert await stores.value("SELECT count(*) FROM model_marks") == 1
