"""How many bytes a request may have: the limits stand in the contracts."""

from __future__ import annotations

from functools import cache

from google.protobuf import descriptor_pool

from lodestone.limits.v1 import limits_pb2

DEFAULT_BYTES = 5 << 20
"""Most bytes of a request whose method names no other number."""


@cache
def most_request_bytes(method: str) -> int:
    """Returns the limit of a method, e.g. of `/lodestone.io.v1.ScanService/ScanTree`."""
    service_name, _, name = method.strip("/").rpartition("/")
    try:
        service = descriptor_pool.Default().FindServiceByName(service_name)
        options = service.methods_by_name[name].GetOptions()
    except KeyError:
        return DEFAULT_BYTES
    return int(options.Extensions[limits_pb2.max_request_bytes]) or DEFAULT_BYTES
