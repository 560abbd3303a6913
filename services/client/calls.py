"""What all calls share: the channel, the deadline, the workspace that is meant, the errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

from lodestone.indexer.v1 import workspace_service_pb2 as workspaces_pb2
from lodestone.indexer.v1.index_run_service_pb2_grpc import IndexRunServiceStub
from lodestone.indexer.v1.search_service_pb2_grpc import SearchServiceStub
from lodestone.indexer.v1.workspace_service_pb2_grpc import WorkspaceServiceStub
from services.client import convert
from services.client.errors import InvalidCallError, call_error

if TYPE_CHECKING:
    from services.client.model import Workspace

_PAGE_SIZE = 1000


class Calls:
    """Calls over one channel."""

    def __init__(self, channel: grpc.aio.Channel, workspace: str, timeout_seconds: float) -> None:
        self._channel = channel
        self._workspace = workspace
        self._timeout_seconds = timeout_seconds
        self._searches: Any = SearchServiceStub(channel)
        self._runs: Any = IndexRunServiceStub(channel)
        self._workspaces: Any = WorkspaceServiceStub(channel)

    async def close(self) -> None:
        """Ends all calls."""
        await self._channel.close()

    async def workspaces(self) -> list[Workspace]:
        """Returns all workspaces, by name."""
        found: list[Workspace] = []
        token = ""
        while True:
            request = workspaces_pb2.ListWorkspacesRequest(page_size=_PAGE_SIZE, page_token=token)
            page = await self._call(self._workspaces.ListWorkspaces, request)
            found.extend(map(convert.workspace_of, page.workspaces))
            token = page.next_page_token
            if not token:
                return found

    async def _parent(self, workspace: str) -> str:
        """Returns the workspace that is meant."""
        if workspace or self._workspace:
            return full_name(workspace or self._workspace)
        known = await self.workspaces()
        if len(known) == 1:
            return known[0].name
        names = ", ".join(each.name for each in known) or "none"
        raise InvalidCallError(
            f"Name the workspace. There are: {names}",
            code="INVALID_ARGUMENT",
            metadata={"workspace": "must be named"},
        )

    async def _call(self, method: Any, request: Any) -> Any:
        try:
            return await method(request, timeout=self._timeout_seconds)
        except grpc.aio.AioRpcError as error:
            raise call_error(error) from None


def full_name(workspace: str) -> str:
    return workspace if workspace.startswith("workspaces/") else f"workspaces/{workspace}"
