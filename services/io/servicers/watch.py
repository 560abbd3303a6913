"""Tells of changes of files."""

from __future__ import annotations

from lodestone.io.v1 import watch_service_pb2_grpc


class WatchServicer(watch_service_pb2_grpc.WatchServiceServicer):
    """Watching is in the contract and not built yet: it answers UNIMPLEMENTED."""
