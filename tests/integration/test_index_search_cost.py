"""What a search does not do: ask the database twice, and wait for a look through all objects."""

from __future__ import annotations

import gc
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from services.indexer.embed_client import EmbedClient
from services.indexer.io_client import IoClient
from services.indexer.search.engine import SearchEngine
from services.indexer.search.model import SearchFilter
from services.indexer.search.reranking import Reranker, RerankRules
from services.indexer.search.weights import Ranking
from services.indexer.storage.database import Database
from services.indexer.storage.search import SearchStore
from services.indexer.storage.workspaces import WorkspaceStore
from services.runtime.channel import connect
from tests.integration.samples import write_tree

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from services.indexer.storage.database import Connection
    from tests.integration.indexing import Indexing


class _Counting(Database):
    """Counts how often a connection is asked for."""

    asked = 0

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        self.asked += 1
        async with super().connection() as connection:
            yield connection


async def test_a_search_asks_for_each_arm_and_for_what_it_found_alone(
    services: Indexing, roots: Path
) -> None:
    """Planted once: the model of the question read anew by each search."""
    write_tree(roots / "tree")
    await services.create("tree", "tree")
    await services.succeed("tree")
    database = _Counting(services.url, connections=4, timeout_seconds=30)
    await database.open()
    async with connect(f"unix:{services.folder}/embed") as channel:
        embed = EmbedClient(channel, 30)
        io = IoClient(channel, 30, parse_seconds=30, fetch_seconds=30)
        workspaces = WorkspaceStore(database)
        engine = SearchEngine(
            SearchStore(database),
            workspaces,
            embed,
            io,
            candidates=50,
            ranking=Ranking(),
            reranker=Reranker(embed, io, RerankRules()),
        )
        workspace = await workspaces.get("tree")
        database.asked = 0

        hits = await engine.search([workspace], "open the database url", SearchFilter())

    await database.close()
    assert hits
    # Both arms, and the nodes of each.
    assert database.asked <= 4


async def test_what_the_start_made_is_not_looked_through_for_garbage(services: Indexing) -> None:
    """Planted once: an indexer that starts without it, and one that keeps Python's threshold."""
    await services.indexer.stop()
    gc.unfreeze()
    gc.set_threshold(700)

    await services.indexer.start()

    frozen = gc.get_freeze_count()
    assert frozen > 10 * len(gc.get_objects())
    assert gc.get_threshold()[0] > 5_000  # what one search makes
