"""The methods of maintenance: protobuf in, the domain's calls, protobuf out."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from lodestone.indexer.v1 import maintenance_service_pb2, maintenance_service_pb2_grpc
from services.indexer import convert, convert_admin
from services.indexer.pages import make_token, page_size, read_token
from services.runtime.errors import DependencyUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from services.indexer.checker import Checker
    from services.indexer.comparer import Comparer
    from services.indexer.model import WorkspaceModel
    from services.indexer.model_admin import ModelAdmin
    from services.indexer.signals import RunSignals
    from services.indexer.storage.workspaces import WorkspaceStore


_QUESTIONS = 200


class MaintenanceServicer(maintenance_service_pb2_grpc.MaintenanceServiceServicer):
    """The models of a workspace, and checks of its index."""

    def __init__(
        self,
        checker: Checker,
        models: ModelAdmin,
        comparer: Comparer,
        workspaces: WorkspaceStore,
        signals: RunSignals,
    ) -> None:
        self._checker = checker
        self._models = models
        self._comparer = comparer
        self._workspaces = workspaces
        self._signals = signals

    async def AddWorkspaceModel(
        self, request: maintenance_service_pb2.AddWorkspaceModelRequest, context: Any
    ) -> maintenance_service_pb2.AddWorkspaceModelResponse:
        workspace = await self._workspaces.get(convert.workspace_id_of(request.parent))
        added = await self._models.add(workspace, request.model)
        self._signals.notify_queued()
        return maintenance_service_pb2.AddWorkspaceModelResponse(model=await self._told(added))

    async def ListWorkspaceModels(
        self, request: maintenance_service_pb2.ListWorkspaceModelsRequest, context: Any
    ) -> maintenance_service_pb2.ListWorkspaceModelsResponse:
        workspace = await self._workspaces.get(convert.workspace_id_of(request.parent))
        size = page_size(request.page_size)
        after = int(read_token(request.page_token, request.parent, start=0))
        page = await self._models.page(workspace, after, size)
        token = make_token(page[-1].model.id, request.parent) if len(page) == size else ""
        return maintenance_service_pb2.ListWorkspaceModelsResponse(
            models=[await self._told(item) for item in page], next_page_token=token
        )

    async def ActivateWorkspaceModel(
        self, request: maintenance_service_pb2.ActivateWorkspaceModelRequest, context: Any
    ) -> maintenance_service_pb2.ActivateWorkspaceModelResponse:
        workspace = await self._workspaces.get(convert.workspace_id_of(request.parent))
        activated = await self._models.activate(
            workspace, request.model, request.fingerprint, force=request.force
        )
        self._signals.notify_queued()
        return maintenance_service_pb2.ActivateWorkspaceModelResponse(
            model=await self._told(activated)
        )

    async def RemoveWorkspaceModel(
        self, request: maintenance_service_pb2.RemoveWorkspaceModelRequest, context: Any
    ) -> maintenance_service_pb2.RemoveWorkspaceModelResponse:
        workspace = await self._workspaces.get(convert.workspace_id_of(request.parent))
        await self._models.remove(workspace, request.model, request.fingerprint)
        return maintenance_service_pb2.RemoveWorkspaceModelResponse()

    async def CompareWorkspaceModels(
        self, request: maintenance_service_pb2.CompareWorkspaceModelsRequest, context: Any
    ) -> maintenance_service_pb2.CompareWorkspaceModelsResponse:
        workspace = await self._workspaces.get(convert.workspace_id_of(request.parent))
        found = await self._comparer.compare(workspace, request.questions or _QUESTIONS)
        return convert_admin.comparison_to_proto(found)

    async def _told(self, item: WorkspaceModel) -> maintenance_service_pb2.WorkspaceModel:
        """Returns a model's message; whether it is served is not known where embed is silent."""
        try:
            serving = convert_admin.serving_of(item, await self._models.served(item))
        except DependencyUnavailableError:
            serving = maintenance_service_pb2.SERVING_UNSPECIFIED
        return convert_admin.model_to_proto(item, serving)

    async def CheckIndex(
        self, request: maintenance_service_pb2.CheckIndexRequest, context: Any
    ) -> AsyncIterator[maintenance_service_pb2.CheckIndexResponse]:
        workspace = await self._workspaces.get(convert.workspace_id_of(request.parent))
        checked = 0
        steps = self._checker.check(workspace, request.sample_ratio, mark=request.mark)
        async with aclosing(steps) as running:  # type: ignore[type-var]
            async for step in running:
                self._signals.raise_if_draining()
                checked += step.rows
                yield maintenance_service_pb2.CheckIndexResponse(
                    checked=checked,
                    disagreements=[
                        convert_admin.disagreement_to_proto(mark) for mark in step.found
                    ],
                    left_out=[] if step.left_out is None else [step.left_out.name],
                )
