"""Loads and unloads models while the service serves, one load at a time."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

from services.embed import metrics
from services.embed.errors import LimitReachedError, ModelLoadError, ModelNotLoadedError
from services.embed.model import ModelState
from services.embed.registry import Entry, wait_until_unused
from services.runtime.errors import AlreadyExistsError, LodestoneError
from services.runtime.exits import StartError
from services.runtime.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from services.embed.model import ModelId, ModelSpec, ModelStatus
    from services.embed.registry import ModelRegistry
    from services.embed.reranking import ServedReranker
    from services.embed.serving import ServedModel

_MOST_REASON_CHARS = 300
_PATH = re.compile(r"(?<![\w.])[/~].*", re.DOTALL)
"""A path in an error of a library, with all that follows: a space in it looks like its end."""
_QUOTE = re.compile(r"""'[^']*'|"[^"]*"|`[^`]*`""")
"""What such an error may tell of a file."""


class ModelLoader:
    """Brings models in and out of the registry; used on the event loop alone.

    A load is a task of its own: callers wait for it and may give up, the load goes on. Loads run
    one after another, so that each finds out how much memory the ones before it took.
    """

    def __init__(
        self,
        registry: ModelRegistry,
        open_model: Callable[[ModelSpec], Awaitable[ServedModel | ServedReranker]],
        *,
        max_models: int,
        unload_seconds: float,
    ) -> None:
        self._registry = registry
        self._open_model = open_model
        self._max_models = max_models
        self._unload_seconds = unload_seconds
        self._one_at_a_time = asyncio.Lock()
        self._leaving: dict[ModelId, asyncio.Task[None]] = {}

    async def load_first(self, spec: ModelSpec) -> None:
        """Loads the model without which the service does not start.

        Raises:
            StartError: it does not load.
            LodestoneError: it may not be loaded.
        """
        model = await self._open_model(spec)
        self._registry.add(Entry(spec, is_default=True, model=model))

    async def load(self, spec: ModelSpec) -> ModelStatus:
        """Returns once a model serves; joins a load of it that is under way.

        Raises:
            AlreadyExistsError: another model has this id.
            LimitReachedError: there are too many models, or too little memory.
            ModelLoadError: it does not load.
            ModelNotLoadedError: it was unloaded meanwhile.
        """
        while (leaving := self._leaving.get(spec.model_id)) is not None:
            await asyncio.wait((leaving,))
        entry = self.begin(spec)
        if entry.loading is not None:
            await asyncio.wait((entry.loading,))
        if entry.error is not None:
            raise entry.error
        if entry.model is None or self._registry.find(spec.model_id) is not entry:
            raise ModelNotLoadedError(f"models/{spec.model_id}")
        return entry.status

    def begin(self, spec: ModelSpec) -> Entry:
        """Starts a load, or finds the one that is under way or done; one that failed starts anew.

        Raises:
            AlreadyExistsError: another model has this id.
            LimitReachedError: there are too many models.
        """
        name = f"models/{spec.model_id}"
        entry = self._registry.find(spec.model_id)
        if entry is not None and entry.state is not ModelState.FAILED:
            if entry.spec != spec:
                raise AlreadyExistsError(
                    f"{name} is another model, or was loaded in another way.",
                    metadata={"resource": name},
                )
            return entry
        if entry is not None:
            self._registry.remove(spec.model_id)
        self._make_room()
        entry = Entry(spec)
        self._registry.add(entry)
        entry.loading = asyncio.create_task(self._load(entry), name=f"load-{spec.model_id}")
        return entry

    async def unload(self, model_id: ModelId) -> None:
        """Returns once a model is gone and its memory free; calls in flight are finished first.

        Raises:
            ModelNotLoadedError: there is none of that id.
        """
        leaving = self._leaving.get(model_id)
        if leaving is None:
            if self._registry.find(model_id) is None:
                raise ModelNotLoadedError(f"models/{model_id}")
            leaving = self._begin_to_leave(model_id)
        await asyncio.wait((leaving,))
        leaving.result()

    async def close(self) -> None:
        """Ends loads and unloads all models."""
        for status in self._registry.statuses():
            self._begin_to_leave(status.model_id)
        if leaving := list(self._leaving.values()):
            await asyncio.wait(leaving)
            for task in leaving:
                task.result()

    def _begin_to_leave(self, model_id: ModelId) -> asyncio.Task[None]:
        entry = self._registry.remove(model_id)
        task = asyncio.create_task(self._leave(entry), name=f"unload-{model_id}")
        self._leaving[model_id] = task
        task.add_done_callback(lambda _: self._leaving.pop(model_id))
        return task

    def _make_room(self) -> None:
        """Forgets the first model that failed when there are too many."""
        if len(self._registry) < self._max_models:
            return
        for status in self._registry.statuses():
            if status.state is ModelState.FAILED:
                self._registry.remove(status.model_id)
                return
        raise LimitReachedError(
            f"At most {self._max_models} models are loaded at once.",
            resource="models",
            limit=self._max_models,
            needed=len(self._registry) + 1,
        )

    async def _load(self, entry: Entry) -> None:
        """Ends with a model or an error in the entry, unless it is cancelled."""
        try:
            async with self._one_at_a_time:
                entry.model = await self._open_model(entry.spec)
        except LodestoneError as error:
            entry.error = error
        except StartError as error:
            entry.error = _load_error(entry, _without_paths(error.message))
        except Exception as error:  # noqa: BLE001 - a library may raise anything; it is this model's
            entry.error = _load_error(entry, f"It fails with {type(error).__name__}.")
        outcome = "ok" if entry.error is None else "failed"
        if isinstance(entry.error, LimitReachedError):
            outcome = "refused"
        metrics.MODEL_LOADS.labels(outcome).inc()
        if entry.error is not None:
            get_logger().warning(
                "model_load_failed", model=entry.spec.model_id, reason=entry.error.reason
            )
        self._registry.count()

    async def _leave(self, entry: Entry) -> None:
        if entry.loading is not None and not entry.loading.done():
            entry.loading.cancel()
            await asyncio.wait((entry.loading,))
        if entry.model is not None:
            if not await wait_until_unused(entry, self._unload_seconds):
                get_logger().warning("model_unloaded_in_use", model=entry.spec.model_id)
            model, entry.model = entry.model, None
            await model.close()
        get_logger().info("model_unloaded", model=entry.spec.model_id)


def _load_error(entry: Entry, why: str) -> ModelLoadError:
    name = f"models/{entry.spec.model_id}"
    return ModelLoadError(f"{name} does not load: {why}", metadata={"model": name})


def _without_paths(message: str) -> str:
    """Returns a message for callers, who are told no path and no piece of a file.

    It ends where a path begins, so that messages name paths last.
    """
    return _QUOTE.sub("...", _PATH.sub("...", message))[:_MOST_REASON_CHARS]
