"""The gRPC methods of the embed service: they convert, call, and convert back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from lodestone.embed.v1 import (
    embed_service_pb2 as pb,
)
from lodestone.embed.v1 import (
    embed_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
    rerank_service_pb2,
    rerank_service_pb2_grpc,
)
from services.embed import convert
from services.embed.errors import ForbiddenError
from services.embed.model import MODEL_ID
from services.embed.specs import admitted
from services.embed.streaming import EmbedSession, HeldTexts, StreamText
from services.runtime.access import caller_name
from services.runtime.errors import PageTokenError
from services.runtime.failpoints import failpoint

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from services.embed.loader import ModelLoader
    from services.embed.registry import ModelRegistry
    from services.embed.settings import EmbedSettings

_DEFAULT_PAGE = 50
_LARGEST_PAGE = 1000


class EmbedServicer(embed_service_pb2_grpc.EmbedServiceServicer):
    """Embeds batches and streams."""

    def __init__(self, registry: ModelRegistry, *, stream_groups: int) -> None:
        self._registry = registry
        self._stream_groups = stream_groups
        self._sessions: set[EmbedSession] = set()
        self._held_by_streams = HeldTexts()

    async def Embed(self, request: pb.EmbedRequest, context: Any) -> pb.EmbedResponse:
        """Embeds a batch: one result per text, in order."""
        with self._registry.borrowed(convert.model_id_of(request.model)) as model:
            await failpoint("embed.forward.before")
            outcomes = await model.embed(
                request.texts,
                convert.options_of(request.options),
                deadline_seconds=context.time_remaining(),
                caller=_caller(context),
            )
            await failpoint("embed.forward.after")
        return pb.EmbedResponse(
            results=map(convert.result_to_proto, outcomes),
            model_fingerprint=model.info.fingerprint,
        )

    async def EmbedStream(
        self, request_iterator: AsyncIterator[pb.EmbedStreamRequest], context: Any
    ) -> AsyncIterator[pb.EmbedStreamResponse]:
        """Embeds texts as they arrive, and answers in any order."""
        session = EmbedSession(
            self._registry,
            max_groups=self._stream_groups,
            caller=_caller(context),
            held=self._held_by_streams,
        )
        self._sessions.add(session)
        try:
            async for answer in session.run(_stream_texts(request_iterator)):
                yield pb.EmbedStreamResponse(
                    id=answer.text_id,
                    result=convert.result_to_proto(answer.outcome),
                    model_fingerprint=answer.fingerprint,
                )
        finally:
            self._sessions.discard(session)

    def stop_streams(self) -> None:
        """Ends all streams once what they have read is answered."""
        for session in self._sessions:
            session.stop()


class RerankServicer(rerank_service_pb2_grpc.RerankServiceServicer):
    """Scores texts against queries."""

    def __init__(self, registry: ModelRegistry) -> None:
        self._registry = registry

    async def Rerank(
        self, request: rerank_service_pb2.RerankRequest, context: Any
    ) -> rerank_service_pb2.RerankResponse:
        """Scores texts: one result per text, in order."""
        model_id = convert.model_id_of(request.model) if request.model else None
        with self._registry.borrowed_reranker(model_id) as model:
            outcomes = await model.rerank(
                request.query,
                request.texts,
                deadline_seconds=context.time_remaining(),
                caller=_caller(context),
            )
        return rerank_service_pb2.RerankResponse(
            results=map(convert.score_to_proto, outcomes),
            model_fingerprint=model.info.fingerprint,
        )


class ModelServicer(model_service_pb2_grpc.ModelServiceServicer):
    """Tells what is loaded, and changes it for those who may."""

    def __init__(
        self, registry: ModelRegistry, loader: ModelLoader, settings: EmbedSettings
    ) -> None:
        self._registry = registry
        self._loader = loader
        self._settings = settings

    async def GetModel(
        self, request: model_service_pb2.GetModelRequest, _context: Any
    ) -> model_service_pb2.GetModelResponse:
        """Returns one model."""
        status = self._registry.status(convert.model_id_of(request.name))
        return model_service_pb2.GetModelResponse(model=convert.model_to_proto(status))

    async def ListModels(
        self, request: model_service_pb2.ListModelsRequest, _context: Any
    ) -> model_service_pb2.ListModelsResponse:
        """Returns a page of models by name; a page token is the name to go on after."""
        after = request.page_token
        if after and not MODEL_ID.fullmatch(after):
            raise PageTokenError("The page token is not of this list.")
        left = [status for status in self._registry.statuses() if status.model_id > after]
        size = min(request.page_size or _DEFAULT_PAGE, _LARGEST_PAGE)
        page = left[:size]
        return model_service_pb2.ListModelsResponse(
            models=map(convert.model_to_proto, page),
            next_page_token=page[-1].model_id if len(left) > size else "",
        )

    async def LoadModel(
        self, request: model_service_pb2.LoadModelRequest, _context: Any
    ) -> model_service_pb2.LoadModelResponse:
        """Loads a model and answers when it serves."""
        self._check_admin()
        asked = convert.spec_of(request)
        entry = self._registry.find(asked.model_id)
        spec = await asyncio.to_thread(
            admitted, asked, self._settings, entry.spec if entry else None
        )
        status = await self._loader.load(spec)
        return model_service_pb2.LoadModelResponse(model=convert.model_to_proto(status))

    async def UnloadModel(
        self, request: model_service_pb2.UnloadModelRequest, _context: Any
    ) -> model_service_pb2.UnloadModelResponse:
        """Unloads a model and answers when its memory is free."""
        self._check_admin()
        await self._loader.unload(convert.model_id_of(request.name))
        return model_service_pb2.UnloadModelResponse()

    def _check_admin(self) -> None:
        """Refuses unless the settings let callers administer models: they have no identity yet."""
        if not self._settings.model_admin:
            raise ForbiddenError("Callers may not change the models of this server.")


def _caller(context: Any) -> str:
    """Returns who calls: the name of the token, else the connection."""
    return caller_name() or str(context.peer())


async def _stream_texts(
    requests: AsyncIterator[pb.EmbedStreamRequest],
) -> AsyncIterator[StreamText]:
    async for request in requests:
        yield StreamText(
            text_id=request.id,
            model_id=convert.model_id_of(request.model),
            options=convert.options_of(request.options),
            text=request.text,
        )
