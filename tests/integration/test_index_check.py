"""A check finds rows that disagree, and a repair run redoes those alone."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import asyncpg
import grpc
import pytest

from lodestone.indexer.v1 import maintenance_service_pb2 as maintenance_pb2
from lodestone.indexer.v1 import maintenance_service_pb2_grpc as maintenance_grpc
from services.indexer.model import WorkspaceId
from services.indexer.search.postings import RECIPE
from services.indexer.storage.database import Database
from services.indexer.storage.term_blocks import TermBlocks
from tests.integration.checks import NODE, check_index, damage_rows, indexed_tree
from tests.integration.indexing import Mode, State, indexing
from tests.integration.oracle import check
from tests.integration.samples import write_many, write_tree

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.integration.hooks import Hook
    from tests.integration.indexing import Indexing

_OTHER = f"(SELECT embedding FROM node_vectors_m1 WHERE node_id <> {NODE} LIMIT 1)"
_HASH = f"(SELECT content_hash FROM nodes WHERE id = {NODE})"

DAMAGES = {
    "vector_missing": f"DELETE FROM node_vectors_m1 WHERE node_id = {NODE}",
    "vector_wrong": f"UPDATE node_vectors_m1 SET embedding = {_OTHER} WHERE node_id = {NODE}",
    "vector_of_other_text": "UPDATE node_vectors_m1 SET content_hash = "
    f"decode(repeat('ab', 32), 'hex') WHERE node_id = {NODE}",
    "terms_missing": f"DELETE FROM node_terms WHERE node_id = {NODE}",
    "terms_wrong": f"UPDATE node_terms SET counts[1] = 99 WHERE node_id = {NODE}",
}
_UNNOTED = "SET lodestone.notes_changes = 'on'"
POSTINGS_DAMAGES: dict[str, tuple[list[str], bool, list[str]]] = {
    "entries are gone": (
        ["DELETE FROM term_postings WHERE term = 'raw'"],
        True,
        ["postings_wrong"],
    ),
    "an unnoted change of terms": (
        [_UNNOTED, f"UPDATE node_terms SET length = 900 WHERE node_id = {NODE}"],
        False,
        ["terms_wrong", "postings_wrong"],
    ),
}


@pytest.fixture
async def services(
    roots: Path, sockets: Path, migrated_url: str, hook: Hook
) -> AsyncIterator[Indexing]:
    """Services with an indexed tree."""
    async with indexed_tree(roots, sockets, migrated_url, hook) as running:
        yield running


async def _until_made(services: Indexing) -> None:
    """Waits until upkeep has made blocks of all nodes."""
    await _until(
        services,
        f"SELECT bool_and(recipe = '{RECIPE}') AND NOT EXISTS (SELECT FROM term_changes) "
        "FROM term_blocks",
    )


async def _until(services: Indexing, condition: str) -> None:
    """Waits until a statement tells what upkeep is to come to."""
    async with asyncpg.create_pool(services.url, min_size=1, max_size=1) as pool:
        deadline = time.monotonic() + 20
        while not await pool.fetchval(condition):
            assert time.monotonic() < deadline, condition
            await asyncio.sleep(0.02)


async def _found_by_terms(services: Indexing) -> list[tuple[int, float]]:
    """Returns what blocks of postings find, as one who knows nothing of them yet."""
    database = Database(services.url, connections=2, timeout_seconds=30)
    await database.open()
    try:
        found = await TermBlocks(database).candidates(WorkspaceId(1), ["parse", "raw", "body"])
    finally:
        await database.close()
    assert found is not None
    return [(int(node), score) for node, score in found.best(10)]


async def test_a_sound_index_agrees_with_everything(services: Indexing, roots: Path) -> None:
    (roots / "tree" / "skipped.py").write_bytes(b"a = 1\0")
    (roots / "tree" / "broken.py").write_text("def (:\n\nclass A:\n    def f(self): g()\n")
    (roots / "tree" / "empty.py").write_text("")
    await services.succeed("tree")

    assert await check_index(services, sample_ratio=1.0, mark=True) == []
    repaired = await services.run("tree", Mode.MODE_REPAIR)

    assert repaired.state == State.STATE_SUCCEEDED
    assert repaired.progress.nodes_total == repaired.progress.files_scanned == 0


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_row_is_found_and_redone_alone(
    services: Indexing, hook: Hook, damage: str
) -> None:
    await damage_rows(services, DAMAGES[damage])

    found = await check_index(services, mark=True)
    repaired = await services.run("tree", Mode.MODE_REPAIR)

    assert found == [(damage, "app.py", "parse_body")]
    assert repaired.state == State.STATE_SUCCEEDED
    assert repaired.progress.nodes_total == repaired.progress.nodes_embedded == 1
    assert len(hook.texts) == 1
    assert await check_index(services, sample_ratio=1.0) == []
    await check(services, "tree", "tree")


async def test_terms_of_another_name_are_made_anew_without_a_forward(
    services: Indexing, hook: Hook
) -> None:
    """Red when its text is forgotten with them, and when they are not looked at."""
    await damage_rows(
        services, f"UPDATE node_terms SET name_terms = '{{old}}' WHERE node_id = {NODE}"
    )

    found = await check_index(services, mark=True)
    repaired = await services.run("tree", Mode.MODE_REPAIR)

    assert found == [("names_wrong", "app.py", "parse_body")]
    assert repaired.state == State.STATE_SUCCEEDED
    assert repaired.progress.nodes_total == repaired.progress.nodes_reused == 1
    assert hook.texts == []
    assert await check_index(services, sample_ratio=1.0) == []
    await check(services, "tree", "tree")


@pytest.mark.parametrize("damage", POSTINGS_DAMAGES)
async def test_damaged_postings_are_found_and_blocks_made_anew(
    roots: Path, sockets: Path, migrated_url: str, hook: Hook, damage: str
) -> None:
    """Planted once: a mark that no repair acts upon."""
    write_tree(roots / "tree")
    write_many(roots / "tree" / "many", 40)
    blocks: dict[str, Any] = {"term_index_nodes": 10, "term_index_interval_seconds": 0.05}
    async with indexing(roots, sockets, migrated_url, embed=hook.app, **blocks) as services:
        await services.create("tree", "tree")
        await services.succeed("tree")
        await _until_made(services)
        assert await check_index(services) == []
        sound = await _found_by_terms(services)
        hook.calls.clear()
        statement, damaged, kinds = POSTINGS_DAMAGES[damage]
        await damage_rows(services, *statement)
        assert (await _found_by_terms(services) != sound) is damaged

        found = await check_index(services, mark=True)
        repaired = await services.run("tree", Mode.MODE_REPAIR)
        await _until_made(services)

        assert [kind for kind, _, _ in found] == kinds
        assert ("postings_wrong", "app.py", "parse_body") in found
        assert repaired.state == State.STATE_SUCCEEDED
        assert await check_index(services) == []
        assert await _found_by_terms(services) == sound
        assert len(hook.texts) == len(kinds) - 1, "postings alone cost no forward"


async def test_an_index_over_vectors_that_misses_much_is_found_and_built_anew(
    roots: Path, sockets: Path, migrated_url: str
) -> None:
    """Planted once: a check that does not ask the index."""
    write_tree(roots / "tree")
    write_many(roots / "tree" / "many", 500)
    lists: dict[str, Any] = {"vector_index_nodes": 100, "vector_index_interval_seconds": 0.05}
    measured = "SELECT probes IS NOT NULL AND probes > 1 FROM vector_indexes"
    async with indexing(roots, sockets, migrated_url, **lists) as services:
        await services.create("tree", "tree")
        await services.succeed("tree")
        await damage_rows(services, "ANALYZE node_vectors_m1_w1")
        await _until(services, measured)
        assert await check_index(services) == []
        await damage_rows(services, "UPDATE vector_indexes SET probes = 1")

        found = await check_index(services, mark=True)
        repaired = await services.run("tree", Mode.MODE_REPAIR)
        await _until(services, measured)

        assert found == [("lists_wrong", "", "")]
        assert repaired.state == State.STATE_SUCCEEDED
        assert repaired.progress.nodes_total == 0
        assert await check_index(services) == []


async def test_a_vector_that_is_wrong_in_the_cache_too_is_found_by_its_text(
    services: Indexing, hook: Hook
) -> None:
    """Red without a sample: table and cache agree with each other."""
    await damage_rows(
        services,
        f"UPDATE embedding_cache SET embedding = {_OTHER} WHERE content_hash = {_HASH}",
        f"UPDATE node_vectors_m1 SET embedding = {_OTHER} WHERE node_id = {NODE}",
    )

    assert await check_index(services) == []
    found = await check_index(services, sample_ratio=1.0, mark=True)
    hook.calls.clear()
    await services.run("tree", Mode.MODE_REPAIR)

    assert found == [("vector_wrong", "app.py", "parse_body")]
    assert len(hook.texts) == 1
    assert await check_index(services, sample_ratio=1.0) == []
    await check(services, "tree", "tree")


async def test_a_share_of_the_vectors_is_held_to_the_texts(services: Indexing, roots: Path) -> None:
    """Red where the share is taken for a whole number: then any share but all is nothing."""
    write_many(roots / "tree" / "many", 60)
    await services.succeed("tree")
    await damage_rows(
        services,
        f"UPDATE embedding_cache SET embedding = {_OTHER}",
        f"UPDATE node_vectors_m1 SET embedding = {_OTHER}",
    )

    half, whole = [await check_index(services, sample_ratio=ratio) for ratio in (0.5, 1.0)]

    assert set(half) < set(whole)
    assert 0.3 < len(half) / len(whole) < 0.7


async def test_terms_that_are_wrong_in_the_cache_too_are_found_by_their_text(
    services: Indexing, hook: Hook
) -> None:
    """Red with a sample whose vectors alone are held to the text."""
    await damage_rows(
        services,
        f"UPDATE content_terms SET counts[1] = 99 WHERE content_hash = {_HASH}",
        DAMAGES["terms_wrong"],
    )

    assert await check_index(services) == []
    found = await check_index(services, sample_ratio=1.0, mark=True)
    await services.run("tree", Mode.MODE_REPAIR)

    assert found == [("terms_wrong", "app.py", "parse_body")]
    assert await check_index(services, sample_ratio=1.0) == []
    await check(services, "tree", "tree")


async def test_what_is_not_marked_is_not_repaired(services: Indexing) -> None:
    await damage_rows(services, DAMAGES["vector_missing"])
    await check_index(services)

    await services.run("tree", Mode.MODE_REPAIR)

    assert [kind for kind, _, _ in await check_index(services)] == ["vector_missing"]


async def test_a_workspace_that_was_never_indexed_has_nothing_to_check(
    services: Indexing,
) -> None:
    await services.create("other", "tree")
    stub = maintenance_grpc.MaintenanceServiceStub(services.channel)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await anext(
            aiter(stub.CheckIndex(maintenance_pb2.CheckIndexRequest(parent="workspaces/other")))
        )

    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
