"""A check finds rows that disagree, and a repair run redoes those alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import asyncpg
import grpc
import pytest

from lodestone.indexer.v1 import maintenance_service_pb2 as maintenance_pb2
from lodestone.indexer.v1 import maintenance_service_pb2_grpc as maintenance_grpc
from tests.integration.hooks import Hook
from tests.integration.indexing import Mode, State, indexing
from tests.integration.oracle import check
from tests.integration.samples import edit, write_tree

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.integration.indexing import Indexing

_NODE = "(SELECT id FROM nodes WHERE qualified_name = 'parse_body')"
_OTHER = f"(SELECT embedding FROM node_vectors_m1 WHERE node_id <> {_NODE} LIMIT 1)"
_HASH = f"(SELECT content_hash FROM nodes WHERE id = {_NODE})"

DAMAGES = {
    "vector_missing": f"DELETE FROM node_vectors_m1 WHERE node_id = {_NODE}",
    "vector_wrong": f"UPDATE node_vectors_m1 SET embedding = {_OTHER} WHERE node_id = {_NODE}",
    "vector_of_other_text": "UPDATE node_vectors_m1 SET content_hash = "
    f"decode(repeat('ab', 32), 'hex') WHERE node_id = {_NODE}",
    "terms_missing": f"DELETE FROM node_terms WHERE node_id = {_NODE}",
    "terms_wrong": f"UPDATE node_terms SET counts[1] = 99 WHERE node_id = {_NODE}",
}
FILE_DAMAGES = {
    "a node is gone": "DELETE FROM nodes WHERE qualified_name = 'parse_body'",
    "a node stands elsewhere": "UPDATE nodes SET end_byte = end_byte + 1 WHERE "
    "qualified_name = 'parse_body'",
    "a node has another name": "UPDATE nodes SET qualified_name = 'x' WHERE "
    "qualified_name = 'parse_body'",
    "a node is of an old generation": "UPDATE nodes SET generation = 99 WHERE "
    "qualified_name = 'parse_body'",
}


@pytest.fixture
def hook() -> Hook:
    return Hook()


@pytest.fixture
async def services(
    roots: Path, sockets: Path, migrated_url: str, hook: Hook
) -> AsyncIterator[Indexing]:
    """Services with an indexed tree."""
    write_tree(roots / "tree")
    async with indexing(roots, sockets, migrated_url, embed=hook.app) as running:
        await running.create("tree", "tree")
        await running.succeed("tree")
        hook.calls.clear()
        yield running


async def _check(services: Indexing, **fields: Any) -> list[tuple[str, str, str]]:
    stub = maintenance_grpc.MaintenanceServiceStub(services.channel)
    request = maintenance_pb2.CheckIndexRequest(parent="workspaces/tree", **fields)
    return [
        (found.kind, found.path, found.qualified_name)
        async for response in stub.CheckIndex(request)
        for found in response.disagreements
    ]


async def _damage(services: Indexing, *statements: str) -> None:
    connection = await asyncpg.connect(services.url)
    for statement in statements:
        assert not (await connection.execute(statement)).endswith(" 0"), statement
    await connection.close()


async def test_a_sound_index_agrees_with_everything(services: Indexing) -> None:
    assert await _check(services, sample_ratio=1.0, mark=True) == []
    repaired = await services.run("tree", Mode.MODE_REPAIR)

    assert repaired.state == State.STATE_SUCCEEDED
    assert repaired.progress.nodes_total == repaired.progress.files_scanned == 0


@pytest.mark.parametrize("kind", DAMAGES)
async def test_a_damaged_row_is_found_and_redone_alone(
    services: Indexing, hook: Hook, kind: str
) -> None:
    await _damage(services, DAMAGES[kind])

    found = await _check(services, mark=True)
    repaired = await services.run("tree", Mode.MODE_REPAIR)

    assert found == [(kind, "app.py", "parse_body")]
    assert repaired.state == State.STATE_SUCCEEDED
    assert repaired.progress.nodes_total == repaired.progress.nodes_embedded == 1
    assert len(hook.texts) == 1
    assert await _check(services, sample_ratio=1.0) == []
    await check(services, "tree", "tree")


async def test_a_vector_that_is_wrong_in_the_cache_too_is_found_by_its_text(
    services: Indexing, hook: Hook
) -> None:
    """Red without a sample: table and cache agree with each other."""
    await _damage(
        services,
        f"UPDATE embedding_cache SET embedding = {_OTHER} WHERE content_hash = {_HASH}",
        f"UPDATE node_vectors_m1 SET embedding = {_OTHER} WHERE node_id = {_NODE}",
    )

    assert await _check(services) == []
    found = await _check(services, sample_ratio=1.0, mark=True)
    hook.calls.clear()
    await services.run("tree", Mode.MODE_REPAIR)

    assert found == [("vector_wrong", "app.py", "parse_body")]
    assert len(hook.texts) == 1
    assert await _check(services, sample_ratio=1.0) == []
    await check(services, "tree", "tree")


@pytest.mark.parametrize("statement", FILE_DAMAGES.values(), ids=FILE_DAMAGES)
async def test_nodes_that_are_not_those_of_the_file_are_cut_again(
    services: Indexing, hook: Hook, statement: str
) -> None:
    await _damage(services, statement)

    found = await _check(services, mark=True)
    repaired = await services.run("tree", Mode.MODE_REPAIR)

    assert ("nodes_differ", "app.py", "") in found
    assert {path for _, path, _ in found} == {"app.py"}
    assert repaired.state == State.STATE_SUCCEEDED
    assert repaired.progress.files_parsed == 1
    assert hook.texts == [], "the cache holds the text"
    assert await _check(services, sample_ratio=1.0) == []
    await check(services, "tree", "tree")


async def test_files_that_changed_or_went_are_found_and_looked_at_alone(
    services: Indexing, hook: Hook, roots: Path
) -> None:
    edit(roots / "tree" / "app.py", "json.loads(raw)", "json.loads(raw.strip())")
    (roots / "tree" / "web" / "price.js").unlink()
    write_tree(roots / "tree" / "new")

    found = await _check(services, mark=True)
    repaired = await services.run("tree", Mode.MODE_REPAIR)

    assert found == [("file_changed", "app.py", ""), ("file_gone", "web/price.js", "")]
    assert repaired.progress.files_parsed == 1
    assert repaired.progress.nodes_removed >= 2
    assert len(hook.texts) == 1
    assert await _check(services) == []


async def test_what_is_not_marked_is_not_repaired(services: Indexing) -> None:
    await _damage(services, DAMAGES["vector_missing"])
    await _check(services)

    await services.run("tree", Mode.MODE_REPAIR)

    assert [kind for kind, _, _ in await _check(services)] == ["vector_missing"]


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
