"""The gRPC methods of the embed service: they convert, call, and convert back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lodestone.embed.v1 import (
    embed_service_pb2 as pb,
)
from lodestone.embed.v1 import (
    embed_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
)
from services.embed import convert
from services.embed.streaming import EmbedSession, StreamText
from services.runtime.errors import PageTokenError
from services.runtime.failpoints import failpoint

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from services.embed.registry import ModelRegistry

_DEFAULT_PAGE = 50
_LARGEST_PAGE = 1000


class EmbedServicer(embed_service_pb2_grpc.EmbedServiceServicer):
    """Embeds batches and streams."""

    def __init__(self, registry: ModelRegistry, *, stream_groups: int) -> None:
        self._registry = registry
        self._stream_groups = stream_groups
        self._sessions: set[EmbedSession] = set()

    async def Embed(self, request: pb.EmbedRequest, _context: Any) -> pb.EmbedResponse:
        """Embeds a batch: one result per text, in order."""
        model = self._registry.get(convert.model_id_of(request.model))
        await failpoint("embed.forward.before")
        outcomes = await model.embed(request.texts, convert.options_of(request.options))
        await failpoint("embed.forward.after")
        return pb.EmbedResponse(
            results=map(convert.result_to_proto, outcomes),
            model_fingerprint=model.info.fingerprint,
        )

    async def EmbedStream(
        self, request_iterator: AsyncIterator[pb.EmbedStreamRequest], _context: Any
    ) -> AsyncIterator[pb.EmbedStreamResponse]:
        """Embeds texts as they arrive, and answers in any order."""
        session = EmbedSession(self._registry, max_groups=self._stream_groups)
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


class ModelServicer(model_service_pb2_grpc.ModelServiceServicer):
    """Tells what is loaded. Models are loaded at start: LoadModel and UnloadModel are not built."""

    def __init__(self, registry: ModelRegistry) -> None:
        self._registry = registry

    async def GetModel(
        self, request: model_service_pb2.GetModelRequest, _context: Any
    ) -> model_service_pb2.GetModelResponse:
        """Returns one model."""
        model = self._registry.get(convert.model_id_of(request.name))
        return model_service_pb2.GetModelResponse(model=convert.model_to_proto(model.info))

    async def ListModels(
        self, request: model_service_pb2.ListModelsRequest, _context: Any
    ) -> model_service_pb2.ListModelsResponse:
        """Returns a page of models by name; a page token is the name to go on after."""
        infos = self._registry.infos()
        after = request.page_token
        if after and not any(info.model_id == after for info in infos):
            raise PageTokenError("The page token is not of this list.")
        left = [info for info in infos if info.model_id > after]
        size = min(request.page_size or _DEFAULT_PAGE, _LARGEST_PAGE)
        page = left[:size]
        return model_service_pb2.ListModelsResponse(
            models=map(convert.model_to_proto, page),
            next_page_token=page[-1].model_id if len(left) > size else "",
        )


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
