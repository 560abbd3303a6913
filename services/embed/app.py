"""Builds the embed service; the only place that knows all its parts."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

from lodestone.embed.v1 import (
    embed_service_pb2,
    embed_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
    rerank_service_pb2,
    rerank_service_pb2_grpc,
)
from services.embed.admission import Admission
from services.embed.batcher import WINDOW_BATCHES, Batcher
from services.embed.engine_health import EngineHealth
from services.embed.errors import LimitReachedError
from services.embed.fingerprint import fingerprint_of
from services.embed.forwarding import Parts
from services.embed.hosting.loading import load_hosted
from services.embed.lanes import LaneTurns
from services.embed.loader import ModelLoader
from services.embed.matryoshka import declared_sizes, shorter_sizes
from services.embed.memory import MemoryBound, estimate_bytes
from services.embed.model import Lane, ModelInfo
from services.embed.pair_tokenizer import PairTokenizer
from services.embed.registry import ModelRegistry
from services.embed.reranking import ServedReranker
from services.embed.servicers import EmbedServicer, ModelServicer, RerankServicer
from services.embed.serving import ServedModel
from services.embed.sharing import Devices
from services.embed.sources import FolderSource, resolve_source
from services.embed.specs import settings_for, specs_of
from services.runtime.exits import ExitCode, StartError
from services.runtime.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import grpc

    from services.embed.backends.protocol import LoadedModel
    from services.embed.model import ModelSpec
    from services.embed.settings import EmbedSettings


class EmbedApp:
    """The embed service, for the runtime that serves it."""

    name = "embed"
    service_names = (
        embed_service_pb2.DESCRIPTOR.services_by_name["EmbedService"].full_name,
        model_service_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name,
        rerank_service_pb2.DESCRIPTOR.services_by_name["RerankService"].full_name,
    )

    def __init__(self, settings: EmbedSettings) -> None:
        self._settings = settings
        self._registry = ModelRegistry()
        self._loader = ModelLoader(
            self._registry,
            self._open,
            max_models=settings.max_models,
            unload_seconds=settings.unload_seconds,
        )
        self._memory = MemoryBound(settings.max_memory_bytes)
        self._devices = Devices()
        self._embed = EmbedServicer(self._registry, stream_groups=settings.stream_groups)
        self._tokenizers = {
            lane: ThreadPoolExecutor(settings.tokenizer_threads, f"tokenize-{lane}")
            for lane in Lane
        }
        self._engine_health = EngineHealth()

    def report_health(self, tell: Callable[[bool], None]) -> None:
        """Has `tell` called with whether every model has an engine that serves."""
        self._engine_health.report_to(tell)

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the servicers."""
        embed_service_pb2_grpc.add_EmbedServiceServicer_to_server(self._embed, server)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(
            ModelServicer(self._registry, self._loader, self._settings),
            server,
        )
        rerank_service_pb2_grpc.add_RerankServiceServicer_to_server(
            RerankServicer(self._registry), server
        )

    async def start(self) -> None:
        """Loads the first model, and begins with the others.

        Raises:
            StartError: a model is unknown, or the first one does not load.
        """
        first, *others = specs_of(self._settings)
        try:
            await self._loader.load_first(first)
            for spec in others:
                self._loader.begin(spec)
        except LimitReachedError as error:
            raise StartError(ExitCode.MODEL, error.message) from None

    async def _open(self, spec: ModelSpec) -> ServedModel | ServedReranker:
        """Returns a model that serves; what it took is given back when it may not stay.

        Raises:
            StartError: it does not load.
            LimitReachedError: it takes more memory than there may be.
        """
        started = time.monotonic()
        settings = settings_for(spec, self._settings)
        source = resolve_source(settings)
        if isinstance(source, FolderSource):
            source = replace(source, reranks=spec.reranks)
        folder = source.folder if isinstance(source, FolderSource) else None
        declared: Sequence[int] = ()
        if folder is not None:
            self._memory.check(await asyncio.to_thread(_estimated, folder))
            declared = await asyncio.to_thread(declared_sizes, folder)
        # Searches do without a reranker: that it is away takes no replica out of service.
        tell = _tell_nobody if spec.reranks else self._engine_health.teller_of(spec.model_id)
        loaded = await load_hosted(source, settings, tell)
        try:  # without waiting: a load that is ended here would leave its engine behind
            self._memory.check()
            model: ServedModel | ServedReranker = (
                self.serve_reranker(loaded, spec)
                if spec.reranks
                else self.serve(loaded, spec, declared=declared)
            )
        except BaseException:
            await asyncio.to_thread(loaded.backend.close)
            raise
        get_logger().info(
            "model_loaded",
            model=model.info.model_id,
            backend=model.info.backend,
            precision=str(model.info.precision),
            dimensions=model.info.dimensions,
            fingerprint=model.info.fingerprint,
            streams=loaded.backend.info.concurrency,
            seconds=round(time.monotonic() - started, 3),
        )
        return model

    def serve(
        self, loaded: LoadedModel, spec: ModelSpec, *, declared: Sequence[int] = ()
    ) -> ServedModel:
        """Returns a loaded model with a queue of its own; the caller closes it."""
        facts = loaded.backend.info
        sizes = shorter_sizes(declared, spec.matryoshka_dimensions, dimensions=facts.dimensions)
        info = replace(
            self._info(loaded, spec), dimensions=facts.dimensions, matryoshka_dimensions=sizes
        )
        return ServedModel(
            self._parts(loaded, spec, info), prompts=facts.identity.prompts, encoder=loaded.encoder
        )

    def serve_reranker(self, loaded: LoadedModel, spec: ModelSpec) -> ServedReranker:
        """Returns a loaded cross-encoder likewise."""
        assert isinstance(loaded.encoder, PairTokenizer)
        info = replace(self._info(loaded, spec), reranks=True)
        return ServedReranker(self._parts(loaded, spec, info), loaded.encoder)

    def _info(self, loaded: LoadedModel, spec: ModelSpec) -> ModelInfo:
        """Returns what is told of any model; one without vectors has no dimensions."""
        facts = loaded.backend.info
        return ModelInfo(
            model_id=spec.model_id,
            dimensions=0,
            max_tokens=loaded.encoder.max_tokens,
            max_batch_texts=self._settings.max_batch_texts,
            fingerprint=fingerprint_of(
                facts.identity, backend=facts.name, precision=facts.precision
            ),
            backend=facts.name,
            precision=facts.precision,
        )

    def _parts(self, loaded: LoadedModel, spec: ModelSpec, info: ModelInfo) -> Parts:
        """Returns the queue of a model with what is around it."""
        settings, facts = self._settings, loaded.backend.info
        backend = self._devices.shared(loaded.backend, weight=spec.share)
        admission = Admission(
            max_tokens=settings.queue_tokens,
            max_bytes=settings.queue_bytes,
            concurrency=facts.concurrency,
            batch_tokens=facts.token_budget,
            window_tokens=WINDOW_BATCHES * facts.token_budget,
        )
        weights = {Lane.INTERACTIVE: settings.interactive_weight, Lane.BULK: 1.0}
        batcher = Batcher(
            backend,
            admission,
            token_budget=facts.token_budget,
            max_texts=min(settings.batch_max_texts, facts.max_texts),
            turns=LaneTurns(weights, max_age_seconds=settings.lane_max_age_seconds),
        )
        return Parts(info, backend, batcher, admission, self._tokenizers)

    async def drain(self) -> None:
        """Ends streams; calls in flight are finished by the server."""
        self._embed.stop_streams()

    async def close(self) -> None:
        """Unloads all models, and ends the threads that tokenize."""
        await self._loader.close()
        for executor in self._tokenizers.values():
            # Not in the loop: a text of a megabyte without blanks takes seconds.
            await asyncio.to_thread(executor.shutdown, wait=True, cancel_futures=True)


def _estimated(folder: Path) -> int:
    """Returns what a model in a folder will probably take. Raises StartError."""
    try:
        return estimate_bytes(folder)
    except OSError as error:
        why = f"A file of the model cannot be read ({error.strerror}). The model is {folder}."
        raise StartError(ExitCode.MODEL, why) from None


def _tell_nobody(_serving: bool, /) -> None:  # noqa: FBT001 - a callback's one argument
    """Takes what an engine tells that health does not depend on."""
