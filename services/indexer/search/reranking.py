"""Has the first hits of a search scored by a cross-encoder; without it the search answers too."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from services.indexer import metrics
from services.indexer.search.blending import blended
from services.indexer.search.weights import DEFAULTS
from services.runtime.errors import DependencyUnavailableError, LodestoneError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from services.indexer.embed_client import EmbedClient
    from services.indexer.io_client import IoClient
    from services.indexer.model import NodeId, Workspace
    from services.indexer.search.model import Hit

_MOST_BYTES = 256 * 1024
"""Longer nodes are not read for this, and keep their place."""
_MOST_CHARS = 8192
"""What is sent of a text: cross-encoders read 512 tokens, most of them."""
_TIMED_OUT = "DEADLINE_EXCEEDED"


class RerankOutcome(StrEnum):
    """What became of reranking."""

    NONE = "none"
    """It is off, or was not asked for."""
    DONE = "done"
    TIMED_OUT = "timed_out"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True)
class RerankRules:
    """How much is reranked, and how."""

    top: int = 0
    """Hits that are scored; 0 is off."""
    share: float = DEFAULTS.rerank_share
    """What the reranker's place weighs."""
    smoothing: float = DEFAULTS.rerank_smoothing
    """Added to places before they are inverted."""
    budget_seconds: float = 1.0
    """Longest time, reading the texts included."""
    model: str = ""
    """Resource name of the reranker; empty is the embed service's."""


@dataclass(frozen=True, slots=True)
class Reranked:
    """All hits of a search in their order, and the scores of those that the reranker saw."""

    hits: list[Hit]
    outcome: RerankOutcome = RerankOutcome.NONE
    scores: Mapping[NodeId, float] = field(default_factory=dict)


class Reranker:
    """Reranks the first hits of searches."""

    def __init__(self, embed: EmbedClient, io: IoClient, rules: RerankRules) -> None:
        self._embed = embed
        self._io = io
        self._rules = rules

    async def rerank(
        self,
        workspaces: Sequence[Workspace],
        query: str,
        hits: Sequence[Hit],
        *,
        wanted: bool | None = None,
    ) -> Reranked:
        """Returns hits in their order: as they came whenever the reranker does not do its part.

        Args:
            workspaces: what was searched.
            query: the question.
            hits: best first.
            wanted: whether they are to be reranked; None is as the rules say.
        """
        if wanted is False or (wanted is None and not self._rules.top):
            return Reranked(list(hits))
        started = time.perf_counter()
        reranked = await self._reranked(workspaces, query, hits)
        metrics.SEARCH_SECONDS.labels("rerank").observe(time.perf_counter() - started)
        metrics.RERANKS.labels(reranked.outcome).inc()
        return reranked

    async def _reranked(
        self, workspaces: Sequence[Workspace], query: str, hits: Sequence[Hit]
    ) -> Reranked:
        if not self._rules.top:
            return Reranked(list(hits), RerankOutcome.UNAVAILABLE)
        window = hits[: self._rules.top]
        try:
            async with asyncio.timeout(self._rules.budget_seconds):
                scores = await self._scores(workspaces, query, window)
        except TimeoutError:
            return Reranked(list(hits), RerankOutcome.TIMED_OUT)
        except DependencyUnavailableError as error:
            late = error.metadata.get("code") == _TIMED_OUT
            outcome = RerankOutcome.TIMED_OUT if late else RerankOutcome.UNAVAILABLE
            return Reranked(list(hits), outcome)
        except LodestoneError:  # whatever else a service says: it costs the reranking alone
            return Reranked(list(hits), RerankOutcome.UNAVAILABLE)
        if window and not scores:
            return Reranked(list(hits), RerankOutcome.UNAVAILABLE)
        ordered = blended(window, scores, self._rules.share, self._rules.smoothing)
        return Reranked([*ordered, *hits[len(window) :]], RerankOutcome.DONE, scores)

    async def _scores(
        self, workspaces: Sequence[Workspace], query: str, window: Sequence[Hit]
    ) -> dict[NodeId, float]:
        """Returns the scores of hits; those whose text is not there, or fails, have none."""
        deadline = time.monotonic() + self._rules.budget_seconds
        texts = await self._texts(workspaces, window)
        if not texts:
            return {}
        found = await self._embed.rerank(
            self._rules.model,
            query,
            list(texts.values()),
            timeout_seconds=max(deadline - time.monotonic(), 0.0),
        )
        return {
            node: score
            for node, score in zip(texts, found, strict=True)
            if isinstance(score, float)
        }

    async def _texts(
        self, workspaces: Sequence[Workspace], window: Sequence[Hit]
    ) -> dict[NodeId, str]:
        """Returns the texts of hits, read from the live files and verified, as far as they are."""
        texts: dict[NodeId, str] = {}
        for workspace in workspaces:
            own = [
                hit
                for hit in window
                if hit.workspace_name == workspace.name
                and hit.end_byte - hit.start_byte <= _MOST_BYTES
            ]
            read = await self._io.read_snippets(workspace.tree, own) if own else []
            for hit, text in zip(own, read, strict=True):
                if isinstance(text, str):
                    texts[hit.node_id] = text[:_MOST_CHARS]
        return texts
