"""The methods of maintenance: protobuf in, the domain's calls, protobuf out."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from lodestone.indexer.v1 import maintenance_service_pb2, maintenance_service_pb2_grpc
from services.indexer import convert

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from services.indexer.checker import Checker
    from services.indexer.signals import RunSignals
    from services.indexer.storage.workspaces import WorkspaceStore


class MaintenanceServicer(maintenance_service_pb2_grpc.MaintenanceServiceServicer):
    """Checks of an index; what is not built of models answers UNIMPLEMENTED."""

    def __init__(self, checker: Checker, workspaces: WorkspaceStore, signals: RunSignals) -> None:
        self._checker = checker
        self._workspaces = workspaces
        self._signals = signals

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
                    disagreements=[convert.disagreement_to_proto(mark) for mark in step.found],
                )
