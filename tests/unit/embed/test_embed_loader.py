"""The loader of models by itself, with openers that a test holds up."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from services.embed import app as app_module
from services.embed.app import EmbedApp
from services.embed.backends.hashing import HashingBackend, HashingEncoder
from services.embed.backends.protocol import LoadedModel
from services.embed.errors import ModelLoadError, ModelNotLoadedError
from services.embed.loader import ModelLoader
from services.embed.model import Embedding, ModelId, ModelSpec, ModelState
from services.embed.registry import ModelRegistry
from services.runtime.errors import AlreadyExistsError
from services.runtime.exits import ExitCode, StartError
from tests.unit.embed.harness import (
    DOCUMENT,
    GatedBackend,
    eventually,
    settings_of,
)

if TYPE_CHECKING:
    from pathlib import Path

    from services.embed.serving import ServedModel

CANARY = "canary-5fd1"


class _Openings:
    """Opens models when the test lets it, and keeps what it opened."""

    def __init__(self, **fields: Any) -> None:
        self.app = EmbedApp(settings_of(**fields))
        self.registry = ModelRegistry()
        self.loader = ModelLoader(self.registry, self.open, max_models=4, unload_seconds=5)
        self.let = asyncio.Event()
        self.opened: list[ModelSpec] = []
        self.running = 0
        self.backends: dict[str, GatedBackend] = {}
        self.error: Exception | None = None

    async def open(self, spec: ModelSpec) -> ServedModel:
        self.opened.append(spec)
        self.running += 1
        assert self.running == 1, "two loads at once"
        try:
            await self.let.wait()
        finally:
            self.running -= 1
        if self.error is not None:
            raise self.error
        backend = self.backends[spec.model_id] = GatedBackend()
        return self.app.serve(LoadedModel(backend, HashingEncoder(max_text_chars=1000)), spec)


def _spec(model_id: str = "m", source: str = "hashing") -> ModelSpec:
    return ModelSpec(ModelId(model_id), source, "auto", "auto")


async def test_loads_run_one_after_another_and_an_identical_one_joins() -> None:
    openings = _Openings()
    loads = [
        asyncio.create_task(openings.loader.load(_spec(model_id)))
        for model_id in ("a", "b", "a", "b", "a")
    ]
    await eventually(lambda: len(openings.registry) == 2)
    states = {status.state for status in openings.registry.statuses()}
    with pytest.raises(AlreadyExistsError):
        await openings.loader.load(_spec("a", "minilm"))
    loads[0].cancel()

    openings.let.set()
    answers = await asyncio.gather(*loads[1:])
    await openings.loader.close()

    assert states == {ModelState.LOADING}
    assert {answer.state for answer in answers} == {ModelState.READY}
    assert [spec.model_id for spec in openings.opened] == ["a", "b"]
    assert len(openings.registry) == 0


@pytest.mark.parametrize(
    "error",
    [
        StartError(
            ExitCode.MODEL, f"The model /srv/{CANARY} says '{CANARY}' at (~/{CANARY}/x.json)."
        ),
        StartError(
            ExitCode.MODEL, f"It can't read /srv/my models, '{CANARY}/x y.json and {CANARY}."
        ),
        RuntimeError(CANARY),
        MemoryError(CANARY),
    ],
    ids=["start", "spaces", "engine", "memory"],
)
async def test_whatever_a_load_raises_becomes_the_models_error(error: Exception) -> None:
    openings = _Openings()
    openings.let.set()
    openings.error = error

    with pytest.raises(ModelLoadError) as failure:
        await openings.loader.load(_spec())
    status = openings.registry.status(ModelId("m"))
    openings.error = None
    again = await openings.loader.load(_spec(source="hashing:64"))
    await openings.loader.close()

    assert CANARY not in failure.value.message
    assert status.state is ModelState.FAILED
    assert again.state is ModelState.READY


async def test_unloading_finishes_calls_in_flight_and_then_frees_the_model() -> None:
    """Red when the model is closed at once: the texts in flight end with SHUTTING_DOWN."""
    openings = _Openings(batch_max_texts=5)
    openings.let.set()
    await openings.loader.load(_spec())
    backend = openings.backends.pop("m")
    texts = [f"text {n}" for n in range(50)]

    async def embed() -> list[Any]:
        with openings.registry.borrowed(ModelId("m")) as model:
            return await model.embed(texts, DOCUMENT)

    running = asyncio.create_task(embed())
    await eventually(backend.entered.is_set)
    unloads = [asyncio.create_task(openings.loader.unload(ModelId("m"))) for _ in range(2)]
    await eventually(lambda: len(openings.registry) == 0)
    with pytest.raises(ModelNotLoadedError):
        await embed()
    reloading = asyncio.create_task(openings.loader.load(_spec()))
    assert not any(task.done() for task in (*unloads, reloading))
    gone = weakref.ref(backend)
    backend.gate.set()
    outcomes = await running
    await asyncio.gather(*unloads)
    await reloading
    del backend, running
    await eventually(lambda: gc.collect() >= 0 and gone() is None)

    assert all(isinstance(outcome, Embedding) for outcome in outcomes)
    await openings.loader.close()


async def test_a_call_that_never_ends_holds_up_unloading_for_a_limited_time() -> None:
    openings = _Openings()
    openings.loader = ModelLoader(
        openings.registry, openings.open, max_models=4, unload_seconds=0.05
    )
    openings.let.set()
    await openings.loader.load(_spec())

    with openings.registry.borrowed(ModelId("m")):
        await openings.loader.unload(ModelId("m"))

    assert len(openings.registry) == 0


async def test_unloading_a_model_that_is_being_loaded_ends_the_load() -> None:
    openings = _Openings()
    loading = asyncio.create_task(openings.loader.load(_spec()))
    await eventually(lambda: openings.running)

    await openings.loader.unload(ModelId("m"))

    with pytest.raises(ModelNotLoadedError):
        await loading
    assert openings.running == 0
    await openings.loader.close()


class _ClosedBackend(HashingBackend):
    """Tells that it was closed."""

    closed = False

    def close(self) -> None:
        self.closed = True


async def test_a_load_that_is_ended_at_its_very_end_leaves_no_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red when a load waits between its engine and its end: the engine then runs for ever."""
    backends: list[_ClosedBackend] = []
    reading, go_on = threading.Event(), threading.Event()

    async def load_hosted(*_: object) -> LoadedModel:
        backends.append(_ClosedBackend())
        return LoadedModel(backends[-1], HashingEncoder(max_text_chars=100))

    def declared_sizes(_: Path) -> list[int]:
        reading.set()
        assert go_on.wait(30)
        return []

    monkeypatch.setattr(app_module, "load_hosted", load_hosted)
    monkeypatch.setattr(app_module, "declared_sizes", declared_sizes)
    app = EmbedApp(settings_of(backend="openvino"))
    (tmp_path / "modules.json").write_text("[]")
    spec = ModelSpec(ModelId("folder"), str(tmp_path), "openvino", "auto")
    load = asyncio.create_task(app._open(spec))
    await eventually(reading.is_set)
    load.cancel()
    await asyncio.wait((load,))
    go_on.set()
    await app.close()

    assert load.cancelled()
    assert all(backend.closed for backend in backends)


async def test_a_model_that_cannot_serve_leaves_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = _ClosedBackend()

    async def load_hosted(*_: object) -> LoadedModel:
        return LoadedModel(backend, HashingEncoder(max_text_chars=100))

    monkeypatch.setattr(app_module, "load_hosted", load_hosted)
    app = EmbedApp(settings_of())
    monkeypatch.setattr(app, "serve", lambda *_, **__: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        await app._open(ModelSpec(ModelId("hashing"), "hashing", "auto", "auto"))
    await app.close()

    assert backend.closed
