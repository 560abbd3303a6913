"""The queue's methods: protobuf in, the domain's calls, protobuf out."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import TYPE_CHECKING, Any

from lodestone.indexer.v1 import queue_service_pb2, queue_service_pb2_grpc
from services.indexer import convert, convert_queue
from services.indexer.pages import make_token, page_size, read_token
from services.indexer.storage.queue_admin import ALL_WORKSPACES
from services.runtime.errors import InvalidRequestError, StateConflictError

if TYPE_CHECKING:
    from services.indexer.ledger import RunLedger
    from services.indexer.model import WorkspaceId
    from services.indexer.signals import RunSignals
    from services.indexer.storage.queue_admin import QueueAdmin
    from services.indexer.storage.workspaces import WorkspaceStore

_POLL_SECONDS = 0.2
_DEFAULT_DRAIN_SECONDS = 60.0


class QueueServicer(queue_service_pb2_grpc.QueueServiceServicer):
    """The queue of nodes that wait for the model."""

    def __init__(
        self,
        queue: QueueAdmin,
        workspaces: WorkspaceStore,
        ledger: RunLedger,
        signals: RunSignals,
    ) -> None:
        self._queue = queue
        self._workspaces = workspaces
        self._ledger = ledger
        self._signals = signals

    async def GetQueueStats(
        self, request: queue_service_pb2.GetQueueStatsRequest, context: Any
    ) -> queue_service_pb2.GetQueueStatsResponse:
        stats = await self._queue.stats(await self._scope(request.parent))
        return convert_queue.queue_stats_to_proto(stats)

    async def PauseQueue(
        self, request: queue_service_pb2.PauseQueueRequest, context: Any
    ) -> queue_service_pb2.PauseQueueResponse:
        await self._queue.pause(await self._scope(request.parent))
        return queue_service_pb2.PauseQueueResponse()

    async def ResumeQueue(
        self, request: queue_service_pb2.ResumeQueueRequest, context: Any
    ) -> queue_service_pb2.ResumeQueueResponse:
        await self._queue.resume(await self._scope(request.parent))
        return queue_service_pb2.ResumeQueueResponse()

    async def RetryFailedNodes(
        self, request: queue_service_pb2.RetryFailedNodesRequest, context: Any
    ) -> queue_service_pb2.RetryFailedNodesResponse:
        workspace_id = await self._scope(request.parent)
        retried = (await self._queue.retry_failed(workspace_id, self._ledger)).values()
        names = [item.run_name for item in retried]
        if names:
            self._signals.notify_queued()
        return queue_service_pb2.RetryFailedNodesResponse(
            count=sum(item.count for item in retried),
            index_run=names[0] if names else "",
            index_runs=names,
        )

    async def DrainQueue(
        self, request: queue_service_pb2.DrainQueueRequest, context: Any
    ) -> queue_service_pb2.DrainQueueResponse:
        workspace_id = await self._scope(request.parent)
        seconds = _DEFAULT_DRAIN_SECONDS
        if request.HasField("timeout"):
            seconds = request.timeout.ToNanoseconds() / 1e9
        left = await self._wait_until_empty(workspace_id, seconds, in_flight_only=False)
        return queue_service_pb2.DrainQueueResponse(drained=not left, left=left)

    async def ListFailedNodes(
        self, request: queue_service_pb2.ListFailedNodesRequest, context: Any
    ) -> queue_service_pb2.ListFailedNodesResponse:
        workspace_id = await self._scope(request.parent)
        size = page_size(request.page_size)
        node_id, model_id = read_token(request.page_token, request.parent, start=[0, 0])
        page = await self._queue.failed(workspace_id, (node_id, model_id), size)
        token = ""
        if len(page) == size:
            token = make_token([page[-1].id, page[-1].model_id or 0], request.parent)
        return queue_service_pb2.ListFailedNodesResponse(
            nodes=[convert_queue.failed_node_to_proto(node) for node in page], next_page_token=token
        )

    async def BeginBulkImport(
        self, request: queue_service_pb2.BeginBulkImportRequest, context: Any
    ) -> queue_service_pb2.BeginBulkImportResponse:
        workspace_id = await self._scope(request.parent)
        seconds = request.lease.ToNanoseconds() / 1e9
        lease = await self._queue.begin_import(workspace_id, seconds)
        try:
            left = await self._wait_until_empty(workspace_id, seconds, in_flight_only=True)
        except BaseException:
            await asyncio.shield(self._queue.end_import(lease.token))
            raise
        if left:
            raise StateConflictError(
                "What was in flight did not end within the lease; the queue goes on.",
                metadata={"state": "processing", "allowed": "idle"},
            )
        expires_at = await self._queue.renew_import(lease.token)
        return queue_service_pb2.BeginBulkImportResponse(
            lease_token=str(lease.token), expire_time=convert.timestamp(expires_at)
        )

    async def RenewBulkImport(
        self, request: queue_service_pb2.RenewBulkImportRequest, context: Any
    ) -> queue_service_pb2.RenewBulkImportResponse:
        expires_at = await self._queue.renew_import(_token_of(request.lease_token))
        return queue_service_pb2.RenewBulkImportResponse(expire_time=convert.timestamp(expires_at))

    async def EndBulkImport(
        self, request: queue_service_pb2.EndBulkImportRequest, context: Any
    ) -> queue_service_pb2.EndBulkImportResponse:
        await self._queue.end_import(_token_of(request.lease_token))
        return queue_service_pb2.EndBulkImportResponse()

    async def _scope(self, parent: str) -> WorkspaceId:
        """Returns the workspace that is meant; all, when none is named."""
        if not parent:
            return ALL_WORKSPACES
        return (await self._workspaces.get(convert.workspace_id_of(parent))).id

    async def _wait_until_empty(
        self, workspace_id: WorkspaceId, seconds: float, *, in_flight_only: bool
    ) -> int:
        """Returns how many nodes are left, 0 as soon as none is; holds no connection meanwhile.

        Raises:
            ShuttingDownError: the process drains.
        """
        deadline = time.monotonic() + seconds
        while True:
            left = await self._queue.count_left(workspace_id, in_flight_only=in_flight_only)
            rest = deadline - time.monotonic()
            if not left or rest <= 0:
                return left
            self._signals.raise_if_draining()
            await asyncio.sleep(min(_POLL_SECONDS, rest))


def _token_of(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        raise InvalidRequestError(
            "The lease token is not one of this server's.", metadata={"lease_token": "not a token"}
        ) from None
