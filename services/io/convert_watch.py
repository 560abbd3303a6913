"""Between protobuf and the words of watching."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf import timestamp_pb2

from lodestone.io.v1 import watch_service_pb2

if TYPE_CHECKING:
    from services.io.watch.model import FileEvent
    from services.io.watch.stream import Told

_NANOSECONDS = 1_000_000_000


def told_message(told: Told) -> watch_service_pb2.WatchTreeResponse:
    """Returns what a caller is told as a message."""
    return watch_service_pb2.WatchTreeResponse(
        events=[_event_message(event) for event in told.events], resume_token=told.resume_token
    )


def _event_message(event: FileEvent) -> watch_service_pb2.FileEvent:
    seconds, nanos = divmod(event.time_ns, _NANOSECONDS)
    return watch_service_pb2.FileEvent(
        type=watch_service_pb2.FileEvent.Type.Value(event.type.value),
        path=event.path,
        old_path=event.old_path,
        origin_id=event.origin_id,
        event_time=timestamp_pb2.Timestamp(seconds=seconds, nanos=nanos),
    )
