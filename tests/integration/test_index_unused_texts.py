"""What is cached is bounded: texts that no node has go in time, and none that a node needs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from services.indexer.storage.cache import fill_cache
from services.indexer.storage.run_retention import RetentionRules
from services.indexer.storage.unused_texts import UnusedTexts
from tests.integration.replicas import (
    Replica,
    content,
    content_hash,
    parsed_file,
    replica,
    workspace_with_model,
)
from tests.support.invariants import broken_rules

if TYPE_CHECKING:
    from services.indexer.model import RegisteredModel, Workspace
    from services.indexer.storage.database import Database

pytestmark = pytest.mark.timeout(120)
_AGE = "UPDATE unused_texts SET since = since - interval '2 days'"


@pytest.fixture
def stores(database: Database) -> Replica:
    return replica(database)


def keeper(stores: Replica, *, keep_days: float = 1.0, sweep_seconds: float = 0.001) -> UnusedTexts:
    return UnusedTexts(stores.database, keep_days=keep_days, sweep_seconds=sweep_seconds)


async def index(
    stores: Replica, workspace: Workspace, model: RegisteredModel, path: str, *texts: str
) -> None:
    """Makes a run that brings a file to some texts."""
    await stores.queue(workspace)
    run = await stores.take()
    await stores.apply(run, model, parsed_file(path, *texts))
    while claimed := await stores.nodes.claim(run, 100):
        left = await stores.nodes.adopt(run, model.id, claimed)
        ready = [node for node in claimed if node.id in left]
        if ready:
            await stores.complete(run, model, ready)
    await stores.ledger.finish(run, None)


async def cached(stores: Replica) -> tuple[list[str], list[str]]:
    """Returns the texts whose vectors are cached, and those whose terms are."""
    async with stores.database.connection() as connection:
        tables = [
            await connection.fetch(f"SELECT content_hash FROM {table} ORDER BY content_hash")
            for table in ("embedding_cache", "content_terms")
        ]
    first, second = (
        [row["content_hash"].rstrip(b"\0").decode() for row in rows] for rows in tables
    )
    return first, second


async def test_a_text_goes_once_no_node_has_had_it_for_long(stores: Replica) -> None:
    """Red when only models that are gone are forgotten: each edit would stay for good."""
    workspace, model = await workspace_with_model(stores)
    await index(stores, workspace, model, "a.py", "one", "two")
    await index(stores, workspace, model, "a.py", "one", "three")

    assert await keeper(stores).step() == 0
    assert await cached(stores) == (["one", "three", "two"],) * 2
    await stores.value(_AGE)
    assert await keeper(stores).step() == 1

    assert await cached(stores) == (["one", "three"],) * 2
    assert await stores.value("SELECT count(*) FROM unused_texts") == 0
    assert await broken_rules(stores.database._url) == []


async def test_a_text_that_comes_back_is_kept_and_its_time_begins_anew(stores: Replica) -> None:
    """Red when a note of long ago outlasts that a node had the text since."""
    workspace, model = await workspace_with_model(stores)
    await index(stores, workspace, model, "a.py", "one")
    await index(stores, workspace, model, "a.py", "two")
    await keeper(stores).step()
    await stores.value(_AGE)
    await index(stores, workspace, model, "a.py", "one")

    assert await keeper(stores).step() == 0
    assert await cached(stores) == (["one", "two"],) * 2
    await index(stores, workspace, model, "a.py", "two")
    assert await keeper(stores).step() == 0

    assert await cached(stores) == (["one", "two"],) * 2
    assert await stores.value("SELECT count(*) FROM unused_texts") == 1


async def test_a_text_of_another_workspace_or_of_a_node_that_waits_is_needed(
    stores: Replica,
) -> None:
    one, model = await workspace_with_model(stores, "first")
    two, _ = await workspace_with_model(stores, "second")
    await index(stores, one, model, "a.py", "shared", "waits")
    await index(stores, two, model, "b.py", "shared")
    await index(stores, one, model, "a.py", "other")
    await stores.queue(two)
    run = await stores.take()
    await stores.apply(run, model, parsed_file("c.py", "waits"))

    await keeper(stores).step()
    await stores.value(_AGE)
    await keeper(stores).step()

    assert await cached(stores) == (["other", "shared", "waits"],) * 2


async def test_one_sweep_a_time_is_made_over_all_replicas(
    stores: Replica, database: Database
) -> None:
    """A sweep reads all nodes. Red when each replica makes its own."""
    workspace, model = await workspace_with_model(stores)
    await index(stores, workspace, model, "a.py", "one")
    await keeper(stores, sweep_seconds=3600).step()
    await index(stores, workspace, model, "a.py", "two")

    await keeper(replica(database), sweep_seconds=3600).step()
    assert await stores.value("SELECT count(*) FROM unused_texts") == 0
    await keeper(stores).step()
    assert await stores.value("SELECT count(*) FROM unused_texts") == 1


async def test_nothing_is_forgotten_where_all_is_to_be_kept(stores: Replica) -> None:
    workspace, model = await workspace_with_model(stores)
    await index(stores, workspace, model, "a.py", "one")
    await index(stores, workspace, model, "a.py", "two")

    assert await keeper(stores, keep_days=0).step() == 0
    assert await stores.value("SELECT count(*) FROM unused_texts") == 0


async def test_what_a_commit_found_in_the_cache_stays_until_its_end(
    stores: Replica, database: Database
) -> None:
    """Red when texts go between the cache and the node: it would be embedded, with no vector."""
    workspace, model = await workspace_with_model(stores)
    await index(stores, workspace, model, "a.py", "one")
    await index(stores, workspace, model, "a.py", "two")
    await keeper(stores).step()
    await stores.value(_AGE)
    text = content_hash("one")

    async with stores.database.transaction() as connection:
        await fill_cache(connection, model.id, {text: content(text)})
        forgetting = asyncio.create_task(keeper(replica(database), sweep_seconds=3600).step())
        await asyncio.sleep(0.3)
        for table in ("embedding_cache", "content_terms"):
            found = await connection.fetchval(
                f"SELECT count(*) FROM {table} WHERE content_hash = $1", text
            )
            assert found == 1, table
        assert not forgetting.done()

    assert await forgetting == 1
    assert await cached(stores) == (["two"],) * 2


async def test_who_forgets_a_model_waits_for_a_commit_before_it_touches_a_row(
    stores: Replica, database: Database
) -> None:
    """Red when rows go first and the wait comes after: each waits for the other, and one fails."""
    workspace, model = await workspace_with_model(stores)
    await index(stores, workspace, model, "a.py", "one")
    await stores.value("UPDATE models SET released_at = now() - interval '31 days'")
    text = content_hash("one")

    async with stores.database.transaction() as connection:
        await fill_cache(connection, model.id, {content_hash("two"): content(content_hash("two"))})
        forgetting = asyncio.create_task(replica(database).ledger.forget_old(RetentionRules(30, 1)))
        await asyncio.sleep(0.3)
        await fill_cache(connection, model.id, {text: content(text)})
        assert not forgetting.done()

    await forgetting
    assert "one" not in (await cached(stores))[0]
