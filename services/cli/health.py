"""Asks services whether they serve."""

from __future__ import annotations

from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2

CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", 256 << 20),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
_CHECK = "/grpc.health.v1.Health/Check"
CHECK_TIMEOUT_SECONDS = 2.0


def is_serving(address: str, timeout_seconds: float = CHECK_TIMEOUT_SECONDS) -> bool:
    """Tells whether a server answers at the address and says that it serves."""
    if address.startswith("unix:") and not Path(address.removeprefix("unix:")).exists():
        return False
    with grpc.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        check = channel.unary_unary(
            _CHECK,
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        try:
            answer = check(health_pb2.HealthCheckRequest(), timeout=timeout_seconds)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
