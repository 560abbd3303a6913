"""Holds an index to the files and to itself: what disagrees is told, and marked for a repair."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

from services.indexer.model import ModelId
from services.indexer.storage.file_truth import rows_of
from services.indexer.storage.marks import Disagreement, Mark
from services.indexer.vector_checker import CheckStep
from services.runtime.errors import StateConflictError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from services.indexer.io_client import IoClient
    from services.indexer.model import KnownFile, ParseOutcome, RegisteredModel, Workspace
    from services.indexer.storage.file_truth import FileRows, FileTruth
    from services.indexer.storage.files import FileStore
    from services.indexer.storage.indexed_files import IndexedFiles
    from services.indexer.storage.marks import MarkStore
    from services.indexer.storage.postings_truth import PostingsTruth
    from services.indexer.storage.vector_index import VectorIndexes
    from services.indexer.storage.workspace_models import WorkspaceModels
    from services.indexer.storage.workspaces import WorkspaceStore
    from services.indexer.vector_checker import VectorChecker

_PAGE_NODES = 2000
_PAGE_FILES = 32

_GONE = "ERROR_REASON_FILE_NOT_FOUND"


class Checker:
    """Compares tables, files and a sample of vectors, page by page; changes no row but marks.

    Vectors of each model of the workspace are compared, those of a model beside the active one
    with its own queue.

    A check beside a run may tell of what is just being changed. A file that came after the last run
    is missing like one whose row was lost: nothing tells them apart, and a repair run reads both.
    """

    def __init__(
        self,
        workspaces: WorkspaceStore,
        files: FileStore,
        marks: MarkStore,
        *,
        rows: FileTruth,
        postings: PostingsTruth,
        lists: VectorIndexes,
        indexed: IndexedFiles,
        models: WorkspaceModels,
        vectors: VectorChecker,
        io: IoClient,
    ) -> None:
        self._workspaces = workspaces
        self._files = files
        self._marks = marks
        self._rows = rows
        self._postings = postings
        self._lists = lists
        self._indexed = indexed
        self._models = models
        self._vectors = vectors
        self._io = io

    async def check(
        self, workspace: Workspace, sample_ratio: float, *, mark: bool
    ) -> AsyncIterator[CheckStep]:
        """Yields after each page.

        Raises:
            StateConflictError: the workspace was never indexed, or the model that is served now is
                not the one of its vectors and vectors were to be compared.
            TreeUnavailableError: the workspace's folder is not there; none of its files is marked.
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
        beside = await self._models.beside(workspace)
        parts = [
            self._compare_tables(workspace, model),
            *(self._compare_tables(workspace, other, active=False) for other in beside),
            self._compare_queues(workspace),
            self._compare_postings(workspace),
            self._ask_lists(workspace, model),
            self._compare_files(workspace, model),
            self._find_missing(workspace),
        ]
        if sample_ratio > 0:
            parts.append(self._vectors.compare(workspace, model, sample_ratio))
            parts += [
                self._vectors.compare_if_served(workspace, other, sample_ratio) for other in beside
            ]
        for part in parts:
            async for step in part:
                yield step

    async def _compare_queues(self, workspace: Workspace) -> AsyncIterator[CheckStep]:
        found = await self._marks.compare_queues(workspace.id)
        yield CheckStep(0, () if found is None else (found,))

    async def _compare_postings(self, workspace: Workspace) -> AsyncIterator[CheckStep]:
        async for found in self._postings.compare(workspace.id):
            yield CheckStep(found.nodes, () if found.mark is None else (found.mark,))

    async def _ask_lists(
        self, workspace: Workspace, model: RegisteredModel
    ) -> AsyncIterator[CheckStep]:
        if await self._lists.finds_enough(workspace.id, model.id) is False:
            yield CheckStep(0, (Mark("", Disagreement.LISTS_WRONG),))

    async def _compare_tables(
        self, workspace: Workspace, model: RegisteredModel, *, active: bool = True
    ) -> AsyncIterator[CheckStep]:
        last, rows = 0, _PAGE_NODES
        while rows == _PAGE_NODES:
            found, rows, last = await self._marks.compare_tables(
                workspace.id, model, last, _PAGE_NODES, active=active
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
            rows = await self._rows.rows(workspace.id, paths)
            found = [
                Mark(file.path, kind)
                for file, outcome in zip(page, outcomes, strict=True)
                for kind in _file_disagreements(file, outcome, rows[file.path])
            ]
            yield CheckStep(len(page), found)
            after = paths[-1]

    async def _find_missing(self, workspace: Workspace) -> AsyncIterator[CheckStep]:
        """Yields files of the tree that the table does not have, as the last run would scan it."""
        exclude = await self._indexed.last_exclude(workspace.id)
        if exclude is None:
            return
        async with aclosing(self._io.scan(workspace.tree, exclude)) as scan:
            async for batch in scan:
                paths = [file.path for file in batch.files]
                missing = await self._indexed.unknown(workspace.id, paths)
                yield CheckStep(
                    len(missing), [Mark(path, Disagreement.FILE_MISSING) for path in missing]
                )


def _file_disagreements(
    file: KnownFile, outcome: ParseOutcome, rows: FileRows
) -> list[Disagreement]:
    """Returns what disagrees of a file: where its nodes do, all that hangs on them is not told."""
    if outcome.failure is not None:
        gone = outcome.failure.reason == _GONE
        return [Disagreement.FILE_GONE if gone else Disagreement.FILE_UNREADABLE]
    parsed = outcome.parsed
    if parsed is None or parsed.digest != file.digest:
        return [Disagreement.FILE_CHANGED]
    expected = rows_of(parsed)
    if rows.nodes != expected.nodes:
        return [Disagreement.NODES_DIFFER]
    parts = (
        (Disagreement.FILE_WRONG, rows.file, expected.file),
        (Disagreement.PARENTS_WRONG, rows.parents, expected.parents),
        (Disagreement.REFERENCES_WRONG, rows.references, expected.references),
    )
    return [kind for kind, found, wanted in parts if found != wanted]
