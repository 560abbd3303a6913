"""The models of this server by id, whether they serve or not."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from services.embed import metrics
from services.embed.errors import ModelLoadingError, ModelNotLoadedError
from services.embed.model import ModelState, ModelStatus
from services.embed.reranking import ServedReranker
from services.embed.serving import ServedModel
from services.runtime.errors import InvalidRequestError, StateConflictError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services.embed.model import ModelId, ModelSpec
    from services.runtime.errors import LodestoneError


@dataclass(slots=True, eq=False)
class Entry:
    """One model on its way from asked for to gone. Only the event loop changes it."""

    spec: ModelSpec
    is_default: bool = False
    model: ServedModel | ServedReranker | None = None
    error: LodestoneError | None = None
    loading: asyncio.Task[None] | None = None
    users: int = 0
    unused: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def state(self) -> ModelState:
        """How far it is."""
        if self.model is not None:
            return ModelState.READY
        return ModelState.LOADING if self.error is None else ModelState.FAILED

    @property
    def status(self) -> ModelStatus:
        """What callers may know of it."""
        model = self.model
        return ModelStatus(
            model_id=self.spec.model_id,
            state=self.state,
            share=self.spec.share,
            reranks=self.spec.reranks,
            is_default=self.is_default,
            info=model.info if model else None,
            error=self.error,
            queued_tokens=model.queued_tokens if model else 0,
        )


class ModelRegistry:
    """Finds a model by the last part of its resource name."""

    def __init__(self) -> None:
        self._entries: dict[ModelId, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    @contextmanager
    def borrowed(self, model_id: ModelId) -> Iterator[ServedModel]:
        """Lends a model that embeds; it is not unloaded before it is given back.

        Raises:
            ModelNotLoadedError: no such model serves.
            ModelLoadingError: it is being loaded.
            InvalidRequestError: it is a reranker.
        """
        with self._lent(model_id) as model:
            if not isinstance(model, ServedModel):
                raise _wrong_kind(model_id, "scores texts against a query and embeds nothing")
            yield model

    @contextmanager
    def borrowed_reranker(self, model_id: ModelId | None) -> Iterator[ServedReranker]:
        """Lends a reranker likewise; without an id the one that the settings name.

        Raises:
            StateConflictError: there is no reranker.
            ModelNotLoadedError: it does not serve, or none of that id.
            ModelLoadingError: it is being loaded.
            InvalidRequestError: it is a model that embeds.
        """
        with self._lent(model_id or self._reranker()) as model:
            if not isinstance(model, ServedReranker):
                raise _wrong_kind(model.info.model_id, "embeds texts and scores no pairs")
            yield model

    @contextmanager
    def _lent(self, model_id: ModelId) -> Iterator[ServedModel | ServedReranker]:
        entry = self._entries.get(model_id)
        if entry is not None and entry.state is ModelState.LOADING:
            raise ModelLoadingError(f"models/{model_id}")
        if entry is None or entry.model is None:
            raise ModelNotLoadedError(f"models/{model_id}")
        entry.users += 1
        try:
            yield entry.model
        finally:
            entry.users -= 1
            if entry.users == 0:
                entry.unused.set()

    def _reranker(self) -> ModelId:
        for model_id, entry in self._entries.items():
            if entry.spec.reranks:
                return model_id
        raise StateConflictError(
            "This server has no reranker: LODESTONE_EMBED_RERANKER names one.",
            metadata={"state": "no reranker", "allowed": "a reranker"},
        )

    def find(self, model_id: ModelId) -> Entry | None:
        """Returns a model in any state, if there is one of that id."""
        return self._entries.get(model_id)

    def status(self, model_id: ModelId) -> ModelStatus:
        """Returns how far a model is.

        Raises:
            ModelNotLoadedError: there is none of that id.
        """
        entry = self._entries.get(model_id)
        if entry is None:
            raise ModelNotLoadedError(f"models/{model_id}")
        return entry.status

    def statuses(self) -> list[ModelStatus]:
        """Returns how far every model is, by id."""
        return [self._entries[model_id].status for model_id in sorted(self._entries)]

    def add(self, entry: Entry) -> None:
        """Takes in a model under an id that is free."""
        assert entry.spec.model_id not in self._entries
        self._entries[entry.spec.model_id] = entry
        self.count()

    def remove(self, model_id: ModelId) -> Entry:
        """Forgets a model; nobody finds it from now on, who borrowed it keeps it."""
        entry = self._entries.pop(model_id)
        self.count()
        return entry

    def count(self) -> None:
        """Tells metrics how many models there are in each state."""
        for state in ModelState:
            number = sum(entry.state is state for entry in self._entries.values())
            metrics.MODELS.labels(state).set(number)


def _wrong_kind(model_id: ModelId, what: str) -> InvalidRequestError:
    return InvalidRequestError(f"models/{model_id} {what}.", metadata={"model": what})


async def wait_until_unused(entry: Entry, timeout_seconds: float) -> bool:
    """Waits until nobody has borrowed a model any more; tells whether that came in time."""
    try:
        async with asyncio.timeout(timeout_seconds):
            while entry.users:
                entry.unused.clear()
                await entry.unused.wait()
    except TimeoutError:
        return False
    return True
