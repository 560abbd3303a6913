"""Tells which folders the server may touch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lodestone.io.v1 import root_service_pb2, root_service_pb2_grpc
from services.io import convert
from services.io.servicers.pages import page_size

if TYPE_CHECKING:
    from services.io.roots import Roots


class RootServicer(root_service_pb2_grpc.RootServiceServicer):
    """Tells which roots there are; adding and removing them is not built yet."""

    def __init__(self, roots: Roots) -> None:
        self._roots = roots

    async def GetRoot(
        self, request: root_service_pb2.GetRootRequest, _context: Any
    ) -> root_service_pb2.GetRootResponse:
        """Gets one root."""
        root = convert.root_message(self._roots.get(request.name))
        return root_service_pb2.GetRootResponse(root=root)

    async def ListRoots(
        self, request: root_service_pb2.ListRootsRequest, _context: Any
    ) -> root_service_pb2.ListRootsResponse:
        """Lists roots by name."""
        page, token = self._roots.page(page_size(request.page_size), request.page_token)
        return root_service_pb2.ListRootsResponse(
            roots=[convert.root_message(root) for root in page], next_page_token=token
        )
