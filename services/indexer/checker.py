"""Holds an index to the files and to itself: what disagrees is told, and marked for a repair."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from services.indexer.errors import TreeUnavailableError
from services.indexer.model import Failure, ModelId
from services.indexer.storage.marks import Disagreement, Mark, row_of
from services.runtime.errors import StateConflictError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from services.indexer.embed_client import EmbedClient, Vector
    from services.indexer.io_client import IoClient
    from services.indexer.model import (
        EmbedModel,
        KnownFile,
        ParseOutcome,
        RegisteredModel,
        Workspace,
    )
    from services.indexer.storage.files import FileStore
    from services.indexer.storage.indexed_files import IndexedFiles
    from services.indexer.storage.marks import MarkStore, SampledNode
    from services.indexer.storage.postings_truth import PostingsTruth
    from services.indexer.storage.vector_index import VectorIndexes
    from services.indexer.storage.workspaces import WorkspaceStore

_PAGE_NODES = 2000
_PAGE_FILES = 32
_SAMPLE_NODES = 64
_LEAST_COSINE = 0.99
"""A vector that is farther from a new one of its text is another text's, or damaged."""

_GONE = "ERROR_REASON_FILE_NOT_FOUND"


@dataclass(frozen=True, slots=True)
class CheckStep:
    """What one step of a check looked at and found."""

    rows: int
    found: Sequence[Mark]


class Checker:
    """Compares tables, files and a sample of vectors, page by page; changes no row but marks.

    A check beside a run may tell of what is just being changed. A file that came after the last run
    is missing like one whose row was lost: nothing tells them apart, and a repair run reads both.
    """

    def __init__(
        self,
        workspaces: WorkspaceStore,
        files: FileStore,
        marks: MarkStore,
        *,
        postings: PostingsTruth,
        lists: VectorIndexes,
        indexed: IndexedFiles,
        io: IoClient,
        embed: EmbedClient,
    ) -> None:
        self._workspaces = workspaces
        self._files = files
        self._marks = marks
        self._postings = postings
        self._lists = lists
        self._indexed = indexed
        self._io = io
        self._embed = embed

    async def check(
        self, workspace: Workspace, sample_ratio: float, *, mark: bool
    ) -> AsyncIterator[CheckStep]:
        """Yields after each page.

        Raises:
            StateConflictError: the workspace was never indexed, or the model that is served now is
                not the one of its vectors and vectors were to be compared.
            DependencyUnavailableError: io or embed does not answer.
        """
        if workspace.active_model_id is None:
            raise StateConflictError("The workspace was never indexed.", metadata={"state": "new"})
        model = await self._workspaces.model(ModelId(workspace.active_model_id))
        async for step in self._steps(workspace, model, sample_ratio):
            if mark and step.found:
                await self._marks.mark(workspace.id, step.found)
            yield step

    async def _steps(
        self, workspace: Workspace, model: RegisteredModel, sample_ratio: float
    ) -> AsyncIterator[CheckStep]:
        async for step in self._compare_tables(workspace, model):
            yield step
        async for found in self._postings.compare(workspace.id):
            yield CheckStep(found.nodes, () if found.mark is None else (found.mark,))
        if await self._lists.finds_enough(workspace.id, model.id) is False:
            yield CheckStep(0, (Mark("", Disagreement.LISTS_WRONG),))
        async for step in self._compare_files(workspace, model):
            yield step
        async for step in self._find_missing(workspace):
            yield step
        if sample_ratio > 0:
            async for step in self._compare_vectors(workspace, model, sample_ratio):
                yield step

    async def _compare_tables(
        self, workspace: Workspace, model: RegisteredModel
    ) -> AsyncIterator[CheckStep]:
        last, rows = 0, _PAGE_NODES
        while rows == _PAGE_NODES:
            found, rows, last = await self._marks.compare_tables(
                workspace.id, model.id, last, _PAGE_NODES
            )
            yield CheckStep(rows, found)

    async def _compare_files(
        self, workspace: Workspace, model: RegisteredModel
    ) -> AsyncIterator[CheckStep]:
        after = ""
        while page := await self._files.page(workspace.id, after, _PAGE_FILES):
            paths = [file.path for file in page]
            outcomes = await self._io.parse(
                workspace.tree, [(path, b"") for path in paths], model.max_tokens
            )
            rows = await self._marks.node_rows(workspace.id, paths)
            kinds = [
                _file_disagreement(file, outcome, rows[file.path])
                for file, outcome in zip(page, outcomes, strict=True)
            ]
            found = [
                Mark(path, kind)
                for path, kind in zip(paths, kinds, strict=True)
                if kind is not None
            ]
            yield CheckStep(len(page), found)
            after = paths[-1]

    async def _find_missing(self, workspace: Workspace) -> AsyncIterator[CheckStep]:
        """Yields files of the tree that the table does not have, as the last run would scan it."""
        exclude = await self._indexed.last_exclude(workspace.id)
        if exclude is None:
            return
        try:
            async with aclosing(self._io.scan(workspace.tree, exclude)) as scan:
                async for batch in scan:
                    paths = [file.path for file in batch.files]
                    missing = await self._indexed.unknown(workspace.id, paths)
                    yield CheckStep(
                        len(missing), [Mark(path, Disagreement.FILE_MISSING) for path in missing]
                    )
        except TreeUnavailableError:
            return  # each known file was told to be out of reach

    async def _compare_vectors(
        self, workspace: Workspace, model: RegisteredModel, ratio: float
    ) -> AsyncIterator[CheckStep]:
        remote = await self._embed.model(model.name)
        if remote.fingerprint != model.fingerprint:
            raise StateConflictError(
                "The model that is served is not the one of the vectors.",
                metadata={"state": "other model", "allowed": model.name},
            )
        after = 0
        while page := await self._marks.sample(
            workspace.id, model.id, ratio, after, min(_SAMPLE_NODES, remote.max_batch_texts)
        ):
            yield CheckStep(len(page), await self._wrong_vectors(workspace, remote, page))
            after = page[-1].node.id

    async def _wrong_vectors(
        self, workspace: Workspace, model: EmbedModel, page: Sequence[SampledNode]
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
        vectors = await self._embed.embed_documents(model, [text for _, text in readable])
        return [
            Mark(
                item.node.path,
                Disagreement.VECTOR_WRONG,
                item.node.id,
                item.node.qualified_name,
            )
            for (item, _), vector in zip(readable, vectors, strict=True)
            if not isinstance(vector, Failure) and _cosine(item, vector) < _LEAST_COSINE
        ]


def _file_disagreement(
    file: KnownFile, outcome: ParseOutcome, rows: Sequence[tuple[object, ...]]
) -> Disagreement | None:
    if outcome.failure is not None:
        gone = outcome.failure.reason == _GONE
        return Disagreement.FILE_GONE if gone else Disagreement.FILE_UNREADABLE
    parsed = outcome.parsed
    if parsed is None or parsed.digest != file.digest:
        return Disagreement.FILE_CHANGED
    return None if list(rows) == row_of(parsed) else Disagreement.NODES_DIFFER


def _cosine(item: SampledNode, vector: Vector) -> float:
    stored = np.asarray(item.vector, dtype=np.float32)
    new = np.frombuffer(vector.values, dtype="<f2").astype(np.float32)
    norms = float(np.linalg.norm(stored) * np.linalg.norm(new))
    return float(stored @ new) / norms if norms else 0.0
