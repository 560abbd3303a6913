"""Between the queue as an admin sees it and its messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lodestone.indexer.v1 import queue_service_pb2
from services.indexer.convert import duration, failure_to_proto, timestamp

if TYPE_CHECKING:
    from services.indexer.storage.queue_admin import FailedNode, QueueStats


def queue_stats_to_proto(stats: QueueStats) -> queue_service_pb2.GetQueueStatsResponse:
    """Returns what the queue holds."""
    return queue_service_pb2.GetQueueStatsResponse(
        counts=[
            queue_service_pb2.QueueCount(
                kind=item.name[0],
                status=item.name[1],
                model=item.name[2],
                count=item.count,
                oldest_age=duration(item.oldest_seconds),
            )
            for item in stats.nodes
        ],
        workers=[
            queue_service_pb2.WorkerCount(
                worker=item.name[0],
                processing=item.count,
                stale=item.stale,
                oldest_age=duration(item.oldest_seconds),
            )
            for item in stats.workers
        ],
        paused=stats.on_hold,
        stale=sum(item.stale for item in stats.workers),
        runs=[
            queue_service_pb2.RunCount(
                state=item.name[0], count=item.count, oldest_age=duration(item.oldest_seconds)
            )
            for item in stats.runs
        ],
        bulk_import_end_time=timestamp(stats.import_expires_at),
    )


def failed_node_to_proto(node: FailedNode) -> queue_service_pb2.FailedNode:
    """Returns a failed node's message."""
    return queue_service_pb2.FailedNode(
        node_id=node.id,
        path=node.path,
        qualified_name=node.qualified_name,
        error=failure_to_proto(node.failure),
        attempts=node.attempts,
        model=node.model_name,
    )
