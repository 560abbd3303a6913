"""Between protobuf messages and the values of the embed service."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lodestone.embed.v1 import embed_service_pb2 as pb
from lodestone.embed.v1 import model_service_pb2 as model_pb
from lodestone.embed.v1 import rerank_service_pb2 as rerank_pb
from services.embed.model import (
    Embedding,
    EmbedOptions,
    Lane,
    ModelId,
    ModelSpec,
    ModelState,
    Purpose,
    Score,
    Truncation,
    VectorType,
)
from services.runtime.status import status_of

if TYPE_CHECKING:
    from services.embed.model import ModelStatus, Outcome, ScoreOutcome

DOMAIN = "embed.lodestone"
_PREFIX = "models/"
_PURPOSES = {pb.PURPOSE_DOCUMENT: Purpose.DOCUMENT, pb.PURPOSE_QUERY: Purpose.QUERY}
_LANES = {pb.LANE_INTERACTIVE: Lane.INTERACTIVE, pb.LANE_BULK: Lane.BULK}
_TRUNCATIONS = {
    pb.TRUNCATION_UNSPECIFIED: Truncation.ERROR,
    pb.TRUNCATION_ERROR: Truncation.ERROR,
    pb.TRUNCATION_END: Truncation.END,
    pb.TRUNCATION_START: Truncation.START,
}
_VECTOR_TYPES = {
    pb.VECTOR_TYPE_UNSPECIFIED: VectorType.FLOAT32,
    pb.VECTOR_TYPE_FLOAT32: VectorType.FLOAT32,
    pb.VECTOR_TYPE_FLOAT16: VectorType.FLOAT16,
    pb.VECTOR_TYPE_INT8: VectorType.INT8,
    pb.VECTOR_TYPE_BINARY: VectorType.BINARY,
}
_STATES = {
    ModelState.LOADING: model_pb.Model.STATE_LOADING,
    ModelState.READY: model_pb.Model.STATE_READY,
    ModelState.FAILED: model_pb.Model.STATE_FAILED,
}


def model_id_of(name: str) -> ModelId:
    """Returns the id in `models/{model}`; the schema has checked the form."""
    return ModelId(name.removeprefix(_PREFIX))


def options_of(message: pb.EmbedOptions) -> EmbedOptions:
    """Returns options with every default filled in; the schema has checked the enums."""
    purpose = _PURPOSES[message.purpose]
    default_lane = Lane.INTERACTIVE if purpose is Purpose.QUERY else Lane.BULK
    return EmbedOptions(
        purpose=purpose,
        truncation=_TRUNCATIONS[message.truncation],
        vector_type=_VECTOR_TYPES[message.vector_type],
        dimensions=message.dimensions,
        lane=_LANES.get(message.lane, default_lane),
        expect_fingerprint=message.expect_fingerprint,
    )


def spec_of(message: model_pb.LoadModelRequest) -> ModelSpec:
    """Returns what a caller wants to be loaded; what it leaves open is empty or 0."""
    return ModelSpec(
        ModelId(message.model_id),
        message.source,
        message.backend,
        message.precision,
        message.share,
        tuple(message.matryoshka_dimensions),
        message.reranks,
    )


def result_to_proto(outcome: Outcome) -> pb.EmbedResult:
    """Returns the message of one text's outcome."""
    if isinstance(outcome, Embedding):
        return pb.EmbedResult(
            embedding=pb.Embedding(
                vector=outcome.vector,
                token_count=outcome.token_count,
                truncated=outcome.truncated,
            )
        )
    return pb.EmbedResult(error=status_of(outcome, DOMAIN))


def score_to_proto(outcome: ScoreOutcome) -> rerank_pb.RerankResult:
    """Returns the message of one text's score."""
    if isinstance(outcome, Score):
        return rerank_pb.RerankResult(
            score=outcome.value,
            token_count=outcome.token_count,
            truncated=outcome.truncated,
        )
    return rerank_pb.RerankResult(error=status_of(outcome, DOMAIN))


def model_to_proto(status: ModelStatus) -> model_pb.Model:
    """Returns the message of a model; what only a served one has is left out of others."""
    message = model_pb.Model(
        name=f"{_PREFIX}{status.model_id}",
        state=_STATES[status.state],
        is_default=status.is_default,
        share=status.share,
        queued_tokens=status.queued_tokens,
        reranks=status.reranks,
    )
    if status.error is not None:
        message.error.CopyFrom(status_of(status.error, DOMAIN))
    if (info := status.info) is not None:
        message.dimensions = info.dimensions
        message.matryoshka_dimensions.extend(info.matryoshka_dimensions)
        message.max_tokens = info.max_tokens
        message.max_batch_size = info.max_batch_texts
        message.fingerprint = info.fingerprint
        message.backend = info.backend
        message.precision = str(info.precision)
    return message
