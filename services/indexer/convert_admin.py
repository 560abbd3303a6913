"""The queue, the models of workspaces and what disagrees, as protobuf."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lodestone.indexer.v1 import maintenance_service_pb2
from services.indexer.convert import duration, timestamp

if TYPE_CHECKING:
    from services.indexer.comparer import Comparison
    from services.indexer.model import EmbedModel, WorkspaceModel
    from services.indexer.storage.marks import Mark


def model_to_proto(
    item: WorkspaceModel, serving: maintenance_service_pb2.Serving.ValueType
) -> maintenance_service_pb2.WorkspaceModel:
    """Returns a workspace's model as a message."""
    return maintenance_service_pb2.WorkspaceModel(
        model=item.model.name,
        fingerprint=item.model.fingerprint,
        dimensions=item.model.dimensions,
        active=item.active,
        nodes_embedded=item.nodes_embedded,
        nodes_total=item.nodes_total,
        create_time=timestamp(item.created_at),
        nodes_pending=item.nodes_pending,
        nodes_failed=item.nodes_failed,
        vector_bytes=item.vector_bytes,
        texts_per_second=item.nodes_per_second,
        serving=serving,
    )


def serving_of(
    item: WorkspaceModel, served: EmbedModel | None
) -> maintenance_service_pb2.Serving.ValueType:
    """Returns whether what is served under a model's name is that model."""
    if served is None:
        return maintenance_service_pb2.SERVING_ABSENT
    if served.fingerprint != item.model.fingerprint:
        return maintenance_service_pb2.SERVING_OTHER_FINGERPRINT
    return maintenance_service_pb2.SERVING_READY


def comparison_to_proto(
    found: Comparison,
) -> maintenance_service_pb2.CompareWorkspaceModelsResponse:
    """Returns how models compare as a message."""
    return maintenance_service_pb2.CompareWorkspaceModelsResponse(
        scores=[
            maintenance_service_pb2.ModelScore(
                model=score.model.name,
                fingerprint=score.model.fingerprint,
                mrr_at_10=score.mrr,
                recall_at_10=score.recall,
                query_duration=duration(score.query_seconds),
                search_duration=duration(score.search_seconds),
            )
            for score in found.scores
        ],
        questions=found.questions,
        comments=found.comments,
        left_out=found.left_out,
    )


def disagreement_to_proto(mark: Mark) -> maintenance_service_pb2.Disagreement:
    """Returns what disagrees as a message."""
    return maintenance_service_pb2.Disagreement(
        path=mark.path,
        qualified_name=mark.qualified_name,
        kind=mark.kind.value,
        nodes=mark.nodes,
        model="" if mark.model is None else mark.model.name,
        fingerprint="" if mark.model is None else mark.model.fingerprint,
    )
