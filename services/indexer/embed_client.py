"""The embed service, in the indexer's words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
import numpy as np

from lodestone.embed.v1 import (
    embed_service_pb2,
    embed_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
    rerank_service_pb2,
    rerank_service_pb2_grpc,
)
from services.indexer.errors import (
    BatchRefusedError,
    ModelNotLoadedError,
    PayloadMismatchError,
    RerankRefusedError,
)
from services.indexer.model import EmbedModel, Failure
from services.indexer.remote import call_failure, item_failure, raise_unavailable
from services.runtime.deadlines import seconds_at_most
from services.runtime.errors import DependencyUnavailableError
from services.runtime.status import read_rpc_error

if TYPE_CHECKING:
    from collections.abc import Sequence

_INFO_TIMEOUT_SECONDS = 30.0
_BYTES_PER_VALUE = 2
_SHOWN_DIGITS = 12
_MOST_MODELS = 1000
_MOST_TEXTS = 256
"""Most texts of one request, by the contract."""


@dataclass(frozen=True, slots=True)
class Vector:
    """A text's vector: little-endian float16, `2 * dimensions` bytes."""

    values: bytes
    token_count: int
    truncated: bool


class EmbedClient:
    """Calls embed; every call has a deadline."""

    def __init__(self, channel: grpc.aio.Channel, timeout_seconds: float) -> None:
        self._embed = embed_service_pb2_grpc.EmbedServiceStub(channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(channel)
        self._reranks = rerank_service_pb2_grpc.RerankServiceStub(channel)
        self._timeout_seconds = timeout_seconds

    async def model(self, name: str) -> EmbedModel:
        """Returns a model that is served; an empty name is the server's default.

        Raises:
            ModelNotLoadedError: there is none, or none of that name.
            DependencyUnavailableError: embed does not answer, or is still loading the model.
        """
        found = await self.find(name)
        if found is None:
            wanted = name or "any model"
            raise ModelNotLoadedError(
                f"The embed service does not serve {wanted}.", metadata={"model": wanted}
            )
        return found

    async def find(self, name: str) -> EmbedModel | None:
        """Returns a model that is served, or None; an empty name is the server's default.

        Raises:
            DependencyUnavailableError: embed does not answer, or is still loading the model.
        """
        for model in await self._list():
            if model.reranks or not (model.name == name if name else model.is_default):
                continue
            if model.state == model_service_pb2.Model.STATE_READY:
                return _described(model)
            _raise_if_loading(model)
        return None

    async def find_weights(self, fingerprint: str) -> EmbedModel | None:
        """Returns a model that is served with these weights, by whatever name, or None.

        Raises:
            DependencyUnavailableError: embed does not answer, or is still loading what may be it.
        """
        models = [model for model in await self._list() if not model.reranks]
        for model in models:
            is_ready = model.state == model_service_pb2.Model.STATE_READY
            if is_ready and model.fingerprint == fingerprint:
                return _described(model)
        for model in models:
            _raise_if_loading(model)
        return None

    async def _list(self) -> Sequence[model_service_pb2.Model]:
        request = model_service_pb2.ListModelsRequest(page_size=_MOST_MODELS)
        try:
            response = await self._models.ListModels(request, timeout=_INFO_TIMEOUT_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise_unavailable(error, "embed")
            raise
        return list(response.models)

    async def embed_documents(
        self, model: EmbedModel, texts: Sequence[str]
    ) -> list[Vector | Failure]:
        """Returns a vector per text, or why there is none, in their order.

        Raises:
            DependencyUnavailableError: embed does not answer.
            BatchRefusedError: the call failed as a whole, so one of its texts may be why.
            PayloadMismatchError: the answer breaks the contract; nothing of it is to be kept.
        """
        return await self._call(model, texts, embed_service_pb2.PURPOSE_DOCUMENT)

    async def embed_query(self, model: EmbedModel, query: str) -> Vector:
        """Returns the vector of a question.

        Raises:
            DependencyUnavailableError: embed does not answer.
            ModelNotLoadedError: the model is not served with this fingerprint any more.
        """
        try:
            result = (await self._call(model, [query], embed_service_pb2.PURPOSE_QUERY))[0]
        except BatchRefusedError as error:
            result = error.failure
        except ModelNotLoadedError as error:
            raise ModelNotLoadedError(
                f"{error.message} What is indexed is of {model.name} with the fingerprint "
                f"{model.fingerprint[:_SHOWN_DIGITS]}: serve it, or index again.",
                metadata=error.metadata,
            ) from None
        if isinstance(result, Failure):
            raise ModelNotLoadedError(
                f"The query was not embedded: {result.message}", metadata={"model": model.name}
            )
        return result

    async def rerank(
        self, model: str, query: str, texts: Sequence[str], *, timeout_seconds: float
    ) -> list[float | Failure]:
        """Returns a score per text, higher for closer ones, or why there is none, in their order.

        Raises:
            DependencyUnavailableError: embed does not answer, or not in time, or is overloaded.
            RerankRefusedError: it has no such reranker, or refuses the call for another reason.
            PayloadMismatchError: the answer breaks the contract.
        """
        request = rerank_service_pb2.RerankRequest(model=model, query=query, texts=texts)
        try:
            response = await self._reranks.Rerank(request, timeout=timeout_seconds)
        except grpc.aio.AioRpcError as error:
            raise_unavailable(error, "embed")
            raise RerankRefusedError(call_failure(error).message) from None
        if len(response.results) != len(texts):
            raise PayloadMismatchError("embed answered with another number of scores.")
        return [_score(result) for result in response.results]

    async def _call(
        self, model: EmbedModel, texts: Sequence[str], purpose: embed_service_pb2.Purpose.ValueType
    ) -> list[Vector | Failure]:
        request = embed_service_pb2.EmbedRequest(
            model=model.name,
            texts=texts,
            options=embed_service_pb2.EmbedOptions(
                purpose=purpose,
                truncation=embed_service_pb2.TRUNCATION_END,
                vector_type=embed_service_pb2.VECTOR_TYPE_FLOAT16,
                expect_fingerprint=model.fingerprint,
            ),
        )
        try:
            response = await self._embed.Embed(
                request, timeout=seconds_at_most(self._timeout_seconds)
            )
        except grpc.aio.AioRpcError as error:
            raise_unavailable(error, "embed")
            remote = read_rpc_error(error)
            if remote.reason in {
                "ERROR_REASON_FINGERPRINT_MISMATCH",
                "ERROR_REASON_MODEL_NOT_LOADED",
            }:
                raise ModelNotLoadedError(remote.message, metadata={"model": model.name}) from None
            raise BatchRefusedError(call_failure(error)) from None
        return _checked(response, model, len(texts))


def _raise_if_loading(model: model_service_pb2.Model) -> None:
    if model.state == model_service_pb2.Model.STATE_LOADING:
        raise DependencyUnavailableError(
            f"The embed service is loading {model.name}.", metadata={"dependency": "embed"}
        )


def _described(model: model_service_pb2.Model) -> EmbedModel:
    return EmbedModel(
        model.name,
        model.fingerprint,
        model.dimensions,
        model.max_tokens,
        model.max_batch_size or _MOST_TEXTS,
    )


def _checked(
    response: embed_service_pb2.EmbedResponse, model: EmbedModel, count: int
) -> list[Vector | Failure]:
    if response.model_fingerprint != model.fingerprint:
        raise PayloadMismatchError("embed answered with vectors of another model.")
    if len(response.results) != count:
        raise PayloadMismatchError("embed answered with another number of vectors.")
    results: list[Vector | Failure] = []
    for result in response.results:
        if result.WhichOneof("outcome") != "embedding":
            results.append(item_failure(result.error))
            continue
        item = result.embedding
        if len(item.vector) != model.dimensions * _BYTES_PER_VALUE:
            raise PayloadMismatchError("embed answered with vectors of another size.")
        results.append(Vector(item.vector, item.token_count, item.truncated))
    return [_sound(result) for result in results]


def _score(result: rerank_service_pb2.RerankResult) -> float | Failure:
    if result.WhichOneof("outcome") != "score":
        return item_failure(result.error)
    if not math.isfinite(result.score):
        return Failure("ERROR_REASON_BAD_VECTOR", "The model gave a score that is no number.")
    return float(result.score)


def _sound(result: Vector | Failure) -> Vector | Failure:
    """Returns a vector that can be searched; numbers that are not finite, or all zero, are none."""
    if isinstance(result, Failure):
        return result
    values = np.frombuffer(result.values, dtype="<f2")
    if np.isfinite(values).all() and values.any():
        return result
    return Failure("ERROR_REASON_BAD_VECTOR", "The model gave a vector that cannot be searched.")
