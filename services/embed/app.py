"""Builds the embed service; the only place that knows all its parts."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
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
from services.embed.backends.loading import load
from services.embed.batcher import Batcher
from services.embed.fingerprint import fingerprint_of
from services.embed.model import ModelInfo
from services.embed.registry import ModelRegistry
from services.embed.servicers import EmbedServicer, ModelServicer
from services.embed.serving import ServedModel
from services.embed.sources import resolve_source
from services.runtime.log import get_logger

if TYPE_CHECKING:
    import grpc

    from services.embed.backends.protocol import LoadedModel
    from services.embed.model import ModelId
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
        self._embed = EmbedServicer(self._registry, stream_groups=settings.stream_groups)
        self._tokenizers = ThreadPoolExecutor(settings.tokenizer_threads, "tokenize")

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the servicers."""
        embed_service_pb2_grpc.add_EmbedServiceServicer_to_server(self._embed, server)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(
            ModelServicer(self._registry),
            server,
        )
        # Built later: the generated class answers UNIMPLEMENTED.
        rerank_service_pb2_grpc.add_RerankServiceServicer_to_server(
            rerank_service_pb2_grpc.RerankServiceServicer(),
            server,
        )

    async def start(self) -> None:
        """Loads the model.

        Raises:
            StartError: the model is unknown or does not load.
        """
        started = time.monotonic()
        source = resolve_source(self._settings)
        loaded = await load(source, self._settings)
        model = self.serve(loaded, source.model_id)
        self._registry.add(model)
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

    def serve(self, loaded: LoadedModel, model_id: ModelId) -> ServedModel:
        """Returns a loaded model with a queue of its own; the caller closes it."""
        settings, facts = self._settings, loaded.backend.info
        admission = Admission(max_tokens=settings.queue_tokens, max_bytes=settings.queue_bytes)
        batcher = Batcher(
            loaded.backend,
            admission,
            token_budget=facts.token_budget,
            max_texts=min(settings.batch_max_texts, facts.max_texts),
            interactive_burst=settings.interactive_burst,
        )
        info = ModelInfo(
            model_id=model_id,
            dimensions=facts.dimensions,
            max_tokens=loaded.encoder.max_tokens,
            max_batch_texts=settings.max_batch_texts,
            fingerprint=fingerprint_of(
                facts.identity, backend=facts.name, precision=facts.precision
            ),
            backend=facts.name,
            precision=facts.precision,
        )
        return ServedModel(
            info=info,
            prompts=facts.identity.prompts,
            backend=loaded.backend,
            encoder=loaded.encoder,
            batcher=batcher,
            admission=admission,
            executor=self._tokenizers,
        )

    async def drain(self) -> None:
        """Ends streams; calls in flight are finished by the server."""
        self._embed.stop_streams()

    async def close(self) -> None:
        """Unloads the model."""
        await self._registry.close()
        self._tokenizers.shutdown(wait=False, cancel_futures=True)
