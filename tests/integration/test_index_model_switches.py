"""Searches that are under way as a workspace is switched to another model."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from lodestone.indexer.v1 import search_service_pb2 as search_pb2
from tests.integration.oracle import broken_rules
from tests.integration.samples import write_many
from tests.integration.two_models import (
    TREE,
    activate,
    add_small,
    complete,
    maintenance,
    remove,
    two_models,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.integration.hooks import Hook
    from tests.integration.indexing import Indexing

_NODES = 40


@pytest.fixture
async def services(
    roots: Path, sockets: Path, migrated_url: str, hook: Hook
) -> AsyncIterator[Indexing]:
    async with two_models(roots, sockets, migrated_url, hook, _NODES) as running:
        yield running


@pytest.fixture
def models(services: Indexing) -> Any:
    return maintenance(services)


async def test_every_search_beside_a_switch_finds_its_node(services: Indexing, models: Any) -> None:
    """Whenever it looks, one model is active and complete."""
    await add_small(models)
    await complete(services, models)
    stopping, found = asyncio.Event(), []

    async def search() -> None:
        while not stopping.is_set():
            hits = await services.search("tree", "function_7", k=1)
            found.append(hits[0].qualified_name if hits else None)

    searching = [asyncio.create_task(search()) for _ in range(2)]
    for _ in range(4):
        await activate(models, "small")
        await activate(models, "hashing")
    await activate(models, "small")
    await remove(models, "hashing")
    stopping.set()
    await asyncio.gather(*searching)

    assert len(found) > 10
    assert len(set(found)) == 1
    assert await broken_rules(services.url) == []


async def test_a_search_that_began_before_a_switch_ends_with_the_new_model(
    services: Indexing, models: Any, hook: Hook
) -> None:
    """Its model is gone by the time that its question is a vector.

    Red when it does not begin anew: no word of the question is in a file, so that the model that it
    looked at, which is not the active one, finds nothing.
    """
    await add_small(models)
    await complete(services, models)
    hook.hold()
    searching = asyncio.create_task(services.search("tree", "nowhere written", k=1))
    await hook.reached.wait()
    await activate(models, "small")
    await remove(models, "hashing")
    hook.go_on.set()

    (hit,) = await searching

    (fresh,) = await services.search("tree", "nowhere written", k=1)
    assert (hit.qualified_name, hit.score) == (fresh.qualified_name, fresh.score)


async def test_a_search_of_several_workspaces_mixes_no_models_as_one_is_switched(
    services: Indexing, models: Any, hook: Hook, roots: Path
) -> None:
    """Scores of two models say nothing of each other.

    Red when the workspace that was switched is searched anew by itself.
    """
    write_many(roots / "other", 5)
    await services.create("other", "other")
    await services.succeed("other")
    await add_small(models)
    await complete(services, models)
    request = search_pb2.SearchNodesRequest(
        parent=TREE, other_parents=["workspaces/other"], query="function_7", page_size=3
    )
    hook.hold()
    searching = asyncio.ensure_future(services.searches.SearchNodes(request))
    await hook.reached.wait()
    await activate(models, "small")
    hook.go_on.set()

    with pytest.raises(grpc.aio.AioRpcError, match="different models"):
        await searching

    await activate(models, "hashing")
    assert len((await services.searches.SearchNodes(request)).hits) == 3
