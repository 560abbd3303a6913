"""Indexes trees with the real services and model, and asks the real search service."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from lodestone.embed.v1 import model_service_pb2, model_service_pb2_grpc
from lodestone.indexer.v1 import search_service_pb2 as search_pb2
from lodestone.indexer.v1 import search_service_pb2_grpc as search_grpc
from services.indexer.app import IndexerApp
from services.indexer.settings import IndexerSettings
from services.runtime import log
from tests.eval.scoring import AT, Target
from tests.eval.stages import RERANKED_HITS, setting
from tests.integration.indexing import Indexing, Service, State, indexing
from tests.support import postgres

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.eval.stages import Weights

MODELS = Path(__file__).parent.parent.parent / "build" / "test-models"
_INDEX_SECONDS = 3600.0
_RERANK_BUDGET_MS = 60_000
_PATIENT: dict[str, Any] = {
    "embed_timeout_seconds": _INDEX_SECONDS,
    "dependency_patience_seconds": _INDEX_SECONDS,
}
"""What is found is measured, not how long it takes: a busy machine ends no run."""


@dataclass
class Rig:
    """Running services over indexed trees."""

    services: Indexing
    has_reranker: bool = False

    async def index(self, workspace: str, directory: str) -> int:
        """Indexes a folder below the root; returns its nodes."""
        await self.services.create(workspace, directory)
        run = await self.services.begin(workspace)
        done = await self.services.wait(run, timeout_seconds=_INDEX_SECONDS)
        assert done.state == State.STATE_SUCCEEDED, done
        return int(done.progress.nodes_total)

    @contextlib.asynccontextmanager
    async def searching(
        self, weights: Weights, *, reranked: bool = False
    ) -> AsyncIterator[Searcher]:
        """Yields searches by an indexer of its own that ranks by other weights, or reranks."""
        assert self.has_reranker or not reranked
        folder = self.services.folder
        settings = IndexerSettings(
            listen=f"unix:{folder}/ranked",
            io_address=f"unix:{folder}/io",
            embed_address=f"unix:{folder}/embed",
            database_url=self.services.url,
            search_weights=setting(weights),
            rerank_top=RERANKED_HITS if reranked else 0,
            rerank_budget_ms=_RERANK_BUDGET_MS,
            drain_seconds=5,
        )
        service = Service(settings, lambda: IndexerApp(settings))
        await service.start()
        try:
            async with grpc.aio.insecure_channel(settings.listen) as channel:
                yield Searcher(search_grpc.SearchServiceStub(channel), reranked)
        finally:
            await service.stop()


@dataclass(frozen=True, slots=True)
class Searcher:
    """Asks one search service."""

    stub: Any
    reranked: bool = False

    async def ask(self, workspace: str, query: str) -> list[Target]:
        """Returns the places of the first hits; fails when they are not reranked and should be."""
        response = await self._search(workspace, query, page_size=AT)
        return [_target(hit) for hit in response.hits]

    async def ask_for_orders(self, workspace: str, query: str) -> list[tuple[Target, int, int]]:
        """Returns all hits that are reranked, each with its rank before and by the reranker."""
        response = await self._search(workspace, query, page_size=RERANKED_HITS, explain=True)
        return [
            (_target(each.hit), each.rerank.rank_before, each.rerank.rank)
            for each in response.explanations
        ]

    async def _search(self, workspace: str, query: str, **fields: Any) -> Any:
        response = await self.stub.SearchNodes(
            search_pb2.SearchNodesRequest(parent=f"workspaces/{workspace}", query=query, **fields)
        )
        done = response.reranking == search_pb2.RERANKING_DONE
        assert done == self.reranked, search_pb2.Reranking.Name(response.reranking)
        return response


def _target(hit: Any) -> Target:
    return Target(hit.path, hit.start_line, hit.end_line)


@contextlib.asynccontextmanager
async def rig(roots: Path, reranker: Path | None = None) -> AsyncIterator[Rig]:
    """Yields the services with the model that users get, over a database that is dropped.

    A reranker, the folder of a cross-encoder, is loaded before.
    """
    log.configure("indexer", "error", "json")
    folder = Path(tempfile.mkdtemp(prefix="ls-"))
    try:
        with postgres.running() as server:
            url = server.create()
            model = {"model": "minilm", "cache_dir": MODELS, "reranker": str(reranker or "")}
            async with indexing(
                roots, folder, url, embed_settings=model, lease_seconds=10.0, **_PATIENT
            ) as services:
                if reranker is not None:
                    await _reranker_ready(f"unix:{folder}/embed")
                yield Rig(services, reranker is not None)
            server.drop(url)
    finally:
        shutil.rmtree(folder)


async def _reranker_ready(address: str) -> None:
    """Waits until the reranker serves; fails when it does not load."""
    states = model_service_pb2.Model.State
    async with grpc.aio.insecure_channel(address) as channel:
        models: Any = model_service_pb2_grpc.ModelServiceStub(channel)
        while True:
            listed = await models.ListModels(model_service_pb2.ListModelsRequest())
            (model,) = (each for each in listed.models if each.reranks)
            if model.state != states.STATE_LOADING:
                assert model.state == states.STATE_READY, model.error.message
                return
            await asyncio.sleep(0.1)
