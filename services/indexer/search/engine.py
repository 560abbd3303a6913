"""Answers questions: both arms at once, fused, ranked, and read from the files."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.indexer import metrics
from services.indexer.model import EmbedModel, Failure, Hit, SearchFilter, Workspace
from services.indexer.search.ranking import Ranking, fuse, rank
from services.indexer.search.terms import query_terms
from services.runtime.errors import StateConflictError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from services.indexer.embed_client import EmbedClient
    from services.indexer.io_client import IoClient
    from services.indexer.storage.search import Scored, SearchStore
    from services.indexer.storage.workspaces import WorkspaceStore


@dataclass(frozen=True, slots=True)
class FoundText:
    """A hit with the bytes of its range, when they were asked for."""

    hit: Hit
    text: str | None
    failure: Failure | None


class SearchEngine:
    """Searches one workspace."""

    def __init__(
        self,
        store: SearchStore,
        workspaces: WorkspaceStore,
        embed: EmbedClient,
        io: IoClient,
        candidates: int,
    ) -> None:
        self._store = store
        self._workspaces = workspaces
        self._embed = embed
        self._io = io
        self._candidates = candidates
        self._ranking = Ranking()

    async def search(self, workspace: Workspace, query: str, only: SearchFilter) -> list[Hit]:
        """Returns hits, best first; the same question to the same index gives the same hits.

        Raises:
            StateConflictError: the workspace was never indexed.
        """
        if workspace.active_model_id is None:
            raise StateConflictError(
                f"Workspace {workspace.name} has not been indexed yet.",
                metadata={"state": "empty", "allowed": "indexed"},
            )
        dense, lexical = await asyncio.gather(
            self._dense(workspace, query, only),
            self._timed("lexical", self._lexical(workspace, query, only)),
        )
        scores = fuse(
            self._ranking,
            [item.node_id for item in dense],
            [item.node_id for item in lexical],
        )
        hits = await self._store.hits(workspace.id, workspace.name, scores)
        return rank(self._ranking, query, hits)

    async def read(self, workspace: Workspace, hits: Sequence[Hit]) -> list[FoundText]:
        """Returns hits with their text, read from the files and verified against the digest."""
        if not hits:
            return []
        texts = await self._io.read_snippets(workspace.tree, hits)
        return [
            FoundText(hit, None, text) if isinstance(text, Failure) else FoundText(hit, text, None)
            for hit, text in zip(hits, texts, strict=True)
        ]

    async def _dense(self, workspace: Workspace, query: str, only: SearchFilter) -> list[Scored]:
        assert workspace.active_model_id is not None
        model = await self._workspaces.model(workspace.active_model_id)
        remote = EmbedModel(model.name, model.fingerprint, model.dimensions, model.max_tokens, 1)
        started = time.perf_counter()
        vector = await self._embed.embed_query(remote, query)
        metrics.SEARCH_SECONDS.labels("query_embedding").observe(time.perf_counter() - started)
        return await self._timed(
            "dense",
            self._store.dense(workspace.id, model.id, vector.values, only, self._candidates),
        )

    def _lexical(
        self, workspace: Workspace, query: str, only: SearchFilter
    ) -> Awaitable[list[Scored]]:
        return self._store.lexical(workspace.id, query_terms(query), only, self._candidates)

    async def _timed(self, arm: str, work: Awaitable[list[Scored]]) -> list[Scored]:
        started = time.perf_counter()
        found = await work
        metrics.SEARCH_SECONDS.labels(arm).observe(time.perf_counter() - started)
        return found
