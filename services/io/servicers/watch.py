"""Tells of changes of files."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from lodestone.io.v1 import watch_service_pb2_grpc
from services.io import convert_watch
from services.io.watch.stream import tell

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from lodestone.io.v1 import watch_service_pb2
    from services.io.watch.watchers import Watchers


class WatchServicer(watch_service_pb2_grpc.WatchServiceServicer):
    """Tells of changes of files."""

    def __init__(self, watchers: Watchers) -> None:
        self._watchers = watchers

    async def WatchTree(
        self, request: watch_service_pb2.WatchTreeRequest, _context: Any
    ) -> AsyncIterator[watch_service_pb2.WatchTreeResponse]:
        """Streams changes of a tree until the caller goes or the watch ends."""
        tree = request.tree
        async with self._watchers.subscribe(tree.root, tree.directory) as subscription:
            told = tell(
                subscription,
                request.resume_token,
                request.ignore_origin_id,
                self._watchers.options.heartbeat_seconds,
            )
            async with aclosing(told) as messages:
                async for message in messages:
                    yield convert_watch.told_message(message)
