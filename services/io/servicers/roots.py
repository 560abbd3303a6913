"""Tells which folders the server may touch, and adds and removes some."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from lodestone.io.v1 import root_service_pb2, root_service_pb2_grpc
from services.io import convert, metrics
from services.io.servicers.pages import page_size
from services.runtime.access import is_visible
from services.runtime.errors import LodestoneError
from services.runtime.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

    from services.io.model import Root
    from services.io.roots import Roots

T = TypeVar("T")


class RootServicer(root_service_pb2_grpc.RootServiceServicer):
    """Tells, adds and removes roots; all in threads, as the list may have to be read or written."""

    def __init__(self, roots: Roots, executor: Executor) -> None:
        self._roots = roots
        self._executor = executor

    async def GetRoot(
        self, request: root_service_pb2.GetRootRequest, _context: Any
    ) -> root_service_pb2.GetRootResponse:
        """Gets one root."""
        root = await self._in_thread(lambda: self._roots.get(request.name))
        return root_service_pb2.GetRootResponse(root=self._message(root))

    async def ListRoots(
        self, request: root_service_pb2.ListRootsRequest, _context: Any
    ) -> root_service_pb2.ListRootsResponse:
        """Lists roots by name."""
        size = page_size(request.page_size)
        page, token = await self._in_thread(lambda: self._roots.page(size, request.page_token))
        return root_service_pb2.ListRootsResponse(
            roots=[self._message(root) for root in page if is_visible(f"roots/{root.id}")],
            next_page_token=token,
        )

    async def CreateRoot(
        self, request: root_service_pb2.CreateRootRequest, _context: Any
    ) -> root_service_pb2.CreateRootResponse:
        """Adds a root."""
        root = convert.root_to_add(request)
        added = await self._changed("create", lambda: self._roots.create(root))
        return root_service_pb2.CreateRootResponse(root=self._message(added))

    async def DeleteRoot(
        self, request: root_service_pb2.DeleteRootRequest, _context: Any
    ) -> root_service_pb2.DeleteRootResponse:
        """Removes a root."""
        await self._changed("delete", lambda: self._roots.delete(request.name))
        return root_service_pb2.DeleteRootResponse()

    async def _changed(self, kind: str, change: Callable[[], T]) -> T:
        outcome = "failed"
        try:
            result = await self._in_thread(change)
            outcome = "succeeded"
        except LodestoneError as error:
            get_logger().warning("root_not_changed", change=kind, reason=error.reason)
            raise
        finally:
            metrics.ROOT_CHANGES.labels(outcome).inc()
        get_logger().info("root_changed", change=kind)
        return result

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)

    def _message(self, root: Root) -> root_service_pb2.Root:
        return convert.root_message(root, with_path=self._roots.rules.may_change)
