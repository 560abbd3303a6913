"""Answers questions: both arms at once, fused, ranked, reranked, and read from the files."""

from __future__ import annotations

import asyncio
import functools
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from services.indexer import metrics
from services.indexer.model import EmbedModel, Failure, NodeId, Workspace
from services.indexer.search.model import ALL
from services.indexer.search.postings import TermCounts
from services.indexer.search.priors import FilePriors
from services.indexer.search.question import read_question
from services.indexer.search.ranking import Arms, parts_of, rank
from services.indexer.search.signatures import signature_of
from services.runtime.errors import StateConflictError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping, Sequence

    from services.indexer.embed_client import EmbedClient
    from services.indexer.io_client import IoClient
    from services.indexer.model import ModelId, RegisteredModel
    from services.indexer.search.model import Hit, SearchFilter
    from services.indexer.search.question import Question
    from services.indexer.search.ranking import Parts, Ranked
    from services.indexer.search.reranking import Reranked, Reranker
    from services.indexer.search.weights import Ranking
    from services.indexer.storage.search import Scored, SearchStore
    from services.indexer.storage.workspaces import WorkspaceStore

_MOST_RANKED_AT_ONCE = 2500
"""Hits that are ranked in some hundredths of a second."""

_MOST_SWITCHES = 5
"""Times that one search follows a switch of models."""


@dataclass(frozen=True, slots=True)
class FoundText:
    """A hit with the bytes of its range, when they were asked for."""

    hit: Hit
    text: str | None
    failure: Failure | None
    is_signature: bool = False
    """Whether the text is what stands before a body alone."""

    def headed(self) -> FoundText:
        """Returns it with the text of a declaration cut before its body, where it has one."""
        head = signature_of(self.text, self.hit.language) if self.text else None
        return self if head is None else replace(self, text=head, is_signature=True)


@dataclass(frozen=True, slots=True)
class SearchTrace:
    """What each step of a search gave."""

    arms: dict[str, list[Scored]]
    fused: dict[NodeId, float]
    hits: list[Hit]
    factors: dict[NodeId, Mapping[str, float]]
    """What a hit's fused score was multiplied by, by name."""
    before: list[Hit]
    """The hits in their order before reranking, with their own scores."""
    reranked: Reranked


class _ModelSwitchedError(Exception):
    """A workspace got another model during the search: what it has found is of two models."""


class SearchEngine:
    """Searches workspaces."""

    def __init__(
        self,
        store: SearchStore,
        workspaces: WorkspaceStore,
        embed: EmbedClient,
        io: IoClient,
        *,
        candidates: int,
        ranking: Ranking,
        reranker: Reranker,
    ) -> None:
        self._store = store
        self._workspaces = workspaces
        self._embed = embed
        self._io = io
        self._candidates = candidates
        self._ranking = ranking
        self._reranker = reranker

    async def search(
        self, workspaces: Sequence[Workspace], query: str, only: SearchFilter
    ) -> list[Hit]:
        """Returns hits, best first; the same question to the same index gives the same hits.

        Raises:
            StateConflictError: a workspace was never indexed, or they have different models.
        """
        return (await self.trace(workspaces, query, only)).hits

    async def trace(
        self,
        workspaces: Sequence[Workspace],
        query: str,
        only: SearchFilter,
        *,
        rerank: bool | None = None,
        at_least: int = 0,
    ) -> SearchTrace:
        """Returns what a search found, as `search`, and how it came to it.

        Whether it is reranked is as the settings say unless `rerank` does. There are `at_least` so
        many hits if so many nodes may be found, where the settings take fewer of each arm.
        """
        limit = max(self._candidates, at_least)
        for _ in range(_MOST_SWITCHES):
            try:
                return await self._trace(workspaces, query, only, rerank=rerank, limit=limit)
            except _ModelSwitchedError:
                workspaces = [await self._workspaces.get(each.name) for each in workspaces]
        raise StateConflictError(
            "The models of the workspaces are being switched: ask again.",
            metadata={"state": "different models", "allowed": "one model"},
        )

    async def _trace(
        self,
        workspaces: Sequence[Workspace],
        query: str,
        only: SearchFilter,
        *,
        rerank: bool | None,
        limit: int,
    ) -> SearchTrace:
        model = _model_of_all(workspaces)
        asked = read_question(query)
        vector = asyncio.create_task(self._embedded(model, asked.text))
        try:
            counts = await self._counts(workspaces, asked.terms)
            found = await asyncio.gather(
                *(
                    self._arms(each, asked, vector, only, limit, counts=counts)
                    for each in workspaces
                )
            )
        finally:
            vector.cancel()
        arms = {name: _joined([each[name] for each, _ in found]) for name in found[0][0]}
        joined = _as_arms(arms)
        known = {node: hit for _, each in found for node, hit in each.items()}
        # In one order, whichever arm was the first: equal ones then always stand alike.
        hits = [known[node] for node in sorted(known)]
        ranked = await ranked_aside(self._ranking, asked, joined, hits)
        before = [item.hit for item in ranked]
        reranked = await self._reranker.rerank(workspaces, query, before, wanted=rerank)
        return SearchTrace(
            arms,
            {item.hit.node_id: item.fused for item in ranked},
            reranked.hits,
            {item.hit.node_id: item.factors for item in ranked},
            before,
            reranked,
        )

    async def hits(
        self,
        workspaces: Sequence[Workspace],
        scores: Mapping[NodeId, float],
        only: SearchFilter = ALL,
    ) -> list[Hit]:
        """Returns nodes as hits of these scores, in no order.

        Those that are gone are left out, and those that may not be found by now.
        """
        found = [await self._store.hits(each.id, each.name, scores, only) for each in workspaces]
        return [hit for hits in found for hit in hits]

    def priors(self, query: str, hit: Hit) -> dict[str, float]:
        """Returns the factors that ranking applies to a hit's file for itself alone, by name."""
        return FilePriors(self._ranking, read_question(query)).of(hit.path, {})

    def parts(self, query: str, trace: SearchTrace) -> dict[NodeId, Parts]:
        """Returns what each hit of a search is worth in its file."""
        return parts_of(self._ranking, read_question(query), _as_arms(trace.arms), trace.hits)

    async def read(self, workspace: Workspace, hits: Sequence[Hit]) -> list[FoundText]:
        """Returns hits with their text, read from the files and verified against the digest."""
        if not hits:
            return []
        texts = await self._io.read_snippets(workspace.tree, hits)
        return [
            FoundText(hit, None, text) if isinstance(text, Failure) else FoundText(hit, text, None)
            for hit, text in zip(hits, texts, strict=True)
        ]

    async def _arms(
        self,
        workspace: Workspace,
        asked: Question,
        vector: Awaitable[bytes],
        only: SearchFilter,
        limit: int,
        *,
        counts: TermCounts | None,
    ) -> tuple[dict[str, list[Scored]], dict[NodeId, Hit]]:
        """Returns what each arm finds in one workspace, and what is known of all of it.

        All of it is looked up at once when the last arm has ended, which may be long after the
        first: a node that went meanwhile, or that the filter does not let through any more, is left
        out, and hits of a file are of one generation.
        """
        arms = {
            "dense": self._dense(workspace, vector, only, limit),
            "lexical": self._timed(
                "lexical", self._store.lexical(workspace.id, asked.terms, only, limit, counts)
            ),
            "named": self._timed(
                "named", self._store.definitions(workspace.id, asked.spelled_names, only)
            ),
        }
        found = await asyncio.gather(*arms.values())
        nodes = {item.node_id: 0.0 for arm in found for item in arm}
        hits = await self._store.hits(workspace.id, workspace.name, nodes, only)
        return dict(zip(arms, found, strict=True)), {hit.node_id: hit for hit in hits}

    async def _counts(
        self, workspaces: Sequence[Workspace], terms: Sequence[str]
    ) -> TermCounts | None:
        """Returns what terms are weighed by in several workspaces together, None for one alone.

        By its own counts a node of a small one would lose, as nothing is rare there.
        """
        if len(workspaces) == 1:
            return None
        found = await asyncio.gather(
            *(self._store.term_counts(each.id, terms) for each in workspaces)
        )
        return functools.reduce(TermCounts.joined, found)

    async def _dense(
        self, workspace: Workspace, vector: Awaitable[bytes], only: SearchFilter, limit: int
    ) -> list[Scored]:
        """Returns what is near in meaning.

        Raises:
            _ModelSwitchedError: it was switched meanwhile: none but the active one finds anything.
        """
        values = await vector
        model = _model_of_all([workspace])
        found = await self._timed(
            "dense", self._store.dense(workspace.id, model.id, values, only, limit)
        )
        if not found:
            now = await self._workspaces.get(workspace.name)
            if _model_of_all([now]).id != model.id:
                raise _ModelSwitchedError
        return found

    async def _embedded(self, model: RegisteredModel, query: str) -> bytes:
        """Returns the vector of a question by a model."""
        remote = EmbedModel(model.name, model.fingerprint, model.dimensions, model.max_tokens, 1)
        started = time.perf_counter()
        vector = await self._embed.embed_query(remote, query)
        metrics.SEARCH_SECONDS.labels("query_embedding").observe(time.perf_counter() - started)
        return vector.values

    async def _timed(self, arm: str, work: Awaitable[list[Scored]]) -> list[Scored]:
        started = time.perf_counter()
        found = await work
        metrics.SEARCH_SECONDS.labels(arm).observe(time.perf_counter() - started)
        return found


async def ranked_aside(
    ranking: Ranking, asked: Question, arms: Arms, hits: Sequence[Hit]
) -> list[Ranked]:
    """Returns what `rank` does, in a thread where that would hold the loop up: 20 ms a thousand."""
    if len(hits) <= _MOST_RANKED_AT_ONCE:
        return rank(ranking, asked, arms, hits)
    return await asyncio.to_thread(rank, ranking, asked, arms, hits)


def _as_arms(found: Mapping[str, Sequence[Scored]]) -> Arms:
    scores = {name: dict(arm) for name, arm in found.items()}  # an item is a pair
    return Arms(scores["dense"], scores["lexical"], frozenset(scores["named"]))


def _joined(arms: Sequence[list[Scored]]) -> list[Scored]:
    """Returns what one arm found in some workspaces, in each the best first, as one such list."""
    if len(arms) == 1:
        return arms[0]
    return sorted((item for arm in arms for item in arm), key=_best_first)


def _best_first(item: Scored) -> tuple[float, int]:
    return -item.score, item.node_id


def _model_of_all(workspaces: Sequence[Workspace]) -> RegisteredModel:
    """Returns the one model that workspaces are searched by. Raises StateConflictError."""
    models: dict[ModelId, RegisteredModel] = {}
    for workspace in workspaces:
        if workspace.active_model is None:
            raise StateConflictError(
                f"Workspace {workspace.name} has not been indexed yet.",
                metadata={"state": "empty", "allowed": "indexed"},
            )
        models[workspace.active_model.id] = workspace.active_model
    if len(models) > 1:
        raise StateConflictError(
            "Workspaces with different models cannot be searched at once: ask each by itself.",
            metadata={"state": "different models", "allowed": "one model"},
        )
    return next(iter(models.values()))
