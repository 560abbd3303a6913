"""Holds vectors and terms to the texts that they are of: some are made again, and compared."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np

from services.indexer.model import Failure
from services.indexer.search.terms import content_terms
from services.indexer.storage.marks import Disagreement, Mark
from services.runtime.errors import StateConflictError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from services.indexer.embed_client import EmbedClient, Vector
    from services.indexer.io_client import IoClient
    from services.indexer.model import EmbedModel, RegisteredModel, Workspace
    from services.indexer.storage.marks import MarkStore, SampledNode

_SAMPLE_NODES = 64
_LEAST_COSINE = 0.99
"""A vector that is farther from a new one of its text is another text's, or damaged."""


@dataclass(frozen=True, slots=True)
class CheckStep:
    """What one step of a check looked at and found."""

    rows: int
    found: Sequence[Mark]
    left_out: RegisteredModel | None = None
    """A model whose vectors could not be made again, as embed does not serve it."""


class VectorChecker:
    """Makes vectors of a sample of nodes again, and tells which are of another text.

    Of the active model's sample the terms are cut again as well: both are as wrong in the cache
    where that was filled with them.
    """

    def __init__(self, marks: MarkStore, io: IoClient, embed: EmbedClient) -> None:
        self._marks = marks
        self._io = io
        self._embed = embed

    async def compare(
        self, workspace: Workspace, model: RegisteredModel, ratio: float
    ) -> AsyncIterator[CheckStep]:
        """Yields after each page.

        Raises:
            StateConflictError: the model that is served is not the one of the vectors.
            ModelNotLoadedError: none of its name is served.
            DependencyUnavailableError: io or embed does not answer, or is loading the model.
        """
        remote = await self._embed.model(model.name)
        if remote.fingerprint != model.fingerprint:
            raise StateConflictError(
                "The model that is served is not the one of the vectors.",
                metadata={"state": "other model", "allowed": model.name},
            )
        async for step in self._pages(workspace, model, remote, ratio):
            yield step

    async def compare_if_served(
        self, workspace: Workspace, model: RegisteredModel, ratio: float
    ) -> AsyncIterator[CheckStep]:
        """Yields after each page, or says that the model is left out, as embed does not serve it.

        Raises:
            DependencyUnavailableError: io or embed does not answer, or is loading the model.
        """
        remote = await self._embed.find(model.name)
        if remote is None or remote.fingerprint != model.fingerprint:
            yield CheckStep(0, (), left_out=model)
            return
        async for step in self._pages(workspace, model, remote, ratio):
            yield step

    async def _pages(
        self, workspace: Workspace, model: RegisteredModel, remote: EmbedModel, ratio: float
    ) -> AsyncIterator[CheckStep]:
        after = 0
        while page := await self._marks.sample(
            workspace.id, model.id, ratio, after, min(_SAMPLE_NODES, remote.max_batch_texts)
        ):
            with_terms = model.id == workspace.active_model_id
            found = await self._wrong(workspace, model, remote, page, with_terms=with_terms)
            yield CheckStep(len(page), found)
            after = page[-1].node.id

    async def _wrong(
        self,
        workspace: Workspace,
        model: RegisteredModel,
        remote: EmbedModel,
        page: Sequence[SampledNode],
        *,
        with_terms: bool,
    ) -> list[Mark]:
        nodes = [item.node for item in page]
        texts = await self._io.read_contents(workspace.tree, nodes)
        readable = [
            (item, text)
            for item, text in zip(page, texts, strict=True)
            if not isinstance(text, Failure)  # the file changed: told before
        ]
        if not readable:
            return []
        vectors = await self._embed.embed_documents(remote, [text for _, text in readable])
        wrong = await asyncio.to_thread(_wrong_terms, readable) if with_terms else []
        return wrong + [
            Mark(
                item.node.path,
                Disagreement.VECTOR_WRONG,
                item.node.id,
                item.node.qualified_name,
                model=model,
            )
            for (item, _), vector in zip(readable, vectors, strict=True)
            if not isinstance(vector, Failure) and _cosine(item, vector) < _LEAST_COSINE
        ]


def _wrong_terms(sampled: Sequence[tuple[SampledNode, str]]) -> list[Mark]:
    """Returns which nodes have other terms than their text; those without any are told before."""
    return [
        Mark(item.node.path, Disagreement.TERMS_WRONG, item.node.id, item.node.qualified_name)
        for item, text in sampled
        if item.terms is not None
        if not _are_of(item, content_terms(text))
    ]


def _are_of(item: SampledNode, terms: Mapping[str, int]) -> bool:
    """Returns whether a node's terms are these, in whatever order."""
    stored = list(zip_longest(item.terms or (), item.counts))
    same = len(stored) == len(terms) and dict(stored) == terms
    return same and item.length == sum(terms.values())


def _cosine(item: SampledNode, vector: Vector) -> float:
    stored = np.asarray(item.vector, dtype=np.float32)
    new = np.frombuffer(vector.values, dtype="<f2").astype(np.float32)
    norms = float(np.linalg.norm(stored) * np.linalg.norm(new))
    return float(stored @ new) / norms if norms else 0.0
