"""A provider that goes away costs a wait: no text is blamed for it, and nothing is given up."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.indexing import State, indexing
from tests.integration.oracle import check
from tests.integration.samples import write_many
from tests.support.embeddings_api import EmbeddingsApi, Step, serving_embeddings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.integration.indexing import Indexing

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
_OUTAGE_SECONDS = 6.0


@pytest.fixture
def provider() -> Iterator[EmbeddingsApi]:
    with serving_embeddings() as api:
        yield api


@asynccontextmanager
async def _services(
    provider: EmbeddingsApi, roots: Path, sockets: Path, url: str, **indexer: Any
) -> AsyncIterator[Indexing]:
    write_many(roots / "tree", 40, per_file=6)
    model = {
        "model": "openai:text-x",
        "remote_url": provider.url,
        "remote_dimensions": provider.dimensions,
    }
    async with indexing(
        roots, sockets, url, embed_settings=model, embed_batch_nodes=16, **indexer
    ) as services:
        await services.create("tree", "tree")
        yield services


async def test_a_provider_that_is_away_for_a_while_costs_a_wait(
    provider: EmbeddingsApi, roots: Path, sockets: Path, migrated_url: str
) -> None:
    """Red when the answer that it is away counts as the death of the service that tells it."""
    async with _services(provider, roots, sockets, migrated_url) as services:
        provider.always = Step(status=503)
        run = await services.begin("tree")
        await services.wait(run, lambda seen: seen.progress.nodes_total_final)
        await asyncio.sleep(_OUTAGE_SECONDS)
        assert not await services.failures(run)
        provider.always = None

        run = await services.wait(run)

        assert run.state == State.STATE_SUCCEEDED
        assert (run.attempt, run.progress.nodes_failed) == (1, 0)
        assert run.progress.nodes_embedded == run.progress.nodes_total
        await check(services, "tree", "tree")


async def test_a_provider_that_stays_away_fails_the_run_and_no_node(
    provider: EmbeddingsApi, roots: Path, sockets: Path, migrated_url: str
) -> None:
    """The run says who is away, and the next one embeds what is left."""
    async with _services(
        provider, roots, sockets, migrated_url, dependency_patience_seconds=2.0
    ) as services:
        provider.always = Step(status=503)
        run = await services.run("tree")
        provider.always = None

        again = await services.run("tree")
        while again.state == State.STATE_FAILED:  # the circuit is still open
            again = await services.run("tree")

        assert run.state == State.STATE_FAILED
        assert "provider" in run.error.message
        assert run.progress.nodes_failed == 0
        assert again.state == State.STATE_SUCCEEDED
        assert again.progress.nodes_embedded == again.progress.nodes_total
        await check(services, "tree", "tree")
