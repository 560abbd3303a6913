"""Compares the models of a workspace by questions that its own index answers."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.indexer.model import EmbedModel, Failure, ModelId
from services.indexer.questions import question_of
from services.runtime.errors import StateConflictError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.indexer.embed_client import EmbedClient
    from services.indexer.io_client import IoClient
    from services.indexer.model import RegisteredModel, Workspace
    from services.indexer.questions import Question
    from services.indexer.storage.marks import MarkStore
    from services.indexer.storage.search import SearchStore
    from services.indexer.storage.workspace_models import WorkspaceModels

_PLACES = 10
_PAGE_NODES = 64
_SAMPLED_PER_QUESTION = 3
"""Nodes to look at for a question: not each of them has something to ask."""

_MOST_MODELS = 100


@dataclass(frozen=True, slots=True)
class ModelScore:
    """How one model answers."""

    model: RegisteredModel
    mrr: float
    """Mean of 1 / place among the first ten; 0 where it is not among them."""
    recall: float
    """Share of questions whose node is among the first ten."""
    query_seconds: float
    """Median time of the vector of a question."""
    search_seconds: float
    """Median time of one search."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How all models of a workspace answer the same questions."""

    scores: Sequence[ModelScore]
    questions: int
    comments: int
    left_out: Sequence[str]
    """Models that embed does not serve."""


@dataclass(frozen=True, slots=True)
class _Task:
    question: Question
    content_hash: bytes


class Comparer:
    """Asks each model of a workspace for sampled nodes, by vector search alone.

    The text that is asked for is a part of the text that was embedded, so the figures are higher
    than those of strangers' questions; they are for comparing models. A node that a model has no
    vector of counts as not found. Nodes of one text answer for each other.
    """

    def __init__(
        self,
        models: WorkspaceModels,
        marks: MarkStore,
        search: SearchStore,
        io: IoClient,
        embed: EmbedClient,
    ) -> None:
        self._models = models
        self._marks = marks
        self._search = search
        self._io = io
        self._embed = embed

    async def compare(self, workspace: Workspace, questions: int) -> Comparison:
        """Returns scores, the active model's first; the same index is asked the same questions.

        Raises:
            StateConflictError: the workspace was never indexed.
            DependencyUnavailableError: io or embed does not answer.
        """
        if workspace.active_model_id is None:
            raise StateConflictError("The workspace was never indexed.", metadata={"state": "new"})
        models = await self._models.page(workspace, 0, _MOST_MODELS)
        models.sort(key=lambda item: (not item.active, item.model.id))
        nodes = models[0].nodes_embedded if models else 0
        tasks = await self._tasks(workspace, workspace.active_model_id, nodes, questions)
        scores: list[ModelScore] = []
        left_out: list[str] = []
        for item in models:
            remote = await self._embed.find(item.model.name)
            if remote is None or remote.fingerprint != item.model.fingerprint:
                left_out.append(item.model.name)
            else:
                scores.append(await self._ask(workspace, item.model, remote, tasks))
        comments = sum(task.question.is_comment for task in tasks)
        return Comparison(scores, len(tasks), comments, left_out)

    async def _tasks(
        self, workspace: Workspace, model_id: ModelId, nodes: int, questions: int
    ) -> list[_Task]:
        ratio = min(1.0, _SAMPLED_PER_QUESTION * questions / max(1, nodes))
        tasks: dict[str, _Task] = {}
        after = 0
        while len(tasks) < questions:
            page = await self._marks.sample(workspace.id, model_id, ratio, after, _PAGE_NODES)
            if not page:
                break
            texts = await self._io.read_contents(workspace.tree, [item.node for item in page])
            for item, text in zip(page, texts, strict=True):
                if isinstance(text, Failure):
                    continue  # the file changed: the next run sees it
                question = question_of(text, item.node.qualified_name)
                if question is not None:
                    tasks.setdefault(question.text, _Task(question, item.node.content_hash))
            after = page[-1].node.id
        return list(tasks.values())[:questions]

    async def _ask(
        self,
        workspace: Workspace,
        model: RegisteredModel,
        remote: EmbedModel,
        tasks: Sequence[_Task],
    ) -> ModelScore:
        places: list[int | None] = []
        query_seconds: list[float] = []
        search_seconds: list[float] = []
        for task in tasks:
            started = time.perf_counter()
            vector = await self._embed.embed_query(remote, task.question.text)
            embedded = time.perf_counter()
            found = await self._search.nearest_contents(
                workspace.id, model.id, vector.values, _PLACES
            )
            query_seconds.append(embedded - started)
            search_seconds.append(time.perf_counter() - embedded)
            found = list(dict.fromkeys(found))
            places.append(
                found.index(task.content_hash) + 1 if task.content_hash in found else None
            )
        asked = max(1, len(tasks))
        return ModelScore(
            model=model,
            mrr=sum(1 / place for place in places if place) / asked,
            recall=sum(1 for place in places if place) / asked,
            query_seconds=statistics.median(query_seconds or [0.0]),
            search_seconds=statistics.median(search_seconds or [0.0]),
        )
