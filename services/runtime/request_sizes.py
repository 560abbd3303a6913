"""How many bytes and items a request may have: the limits stand in the contracts."""

from __future__ import annotations

from functools import cache
from typing import Any

from buf.validate import validate_pb2
from google.protobuf import descriptor_pool

from lodestone.limits.v1 import limits_pb2
from services.runtime.wire import has_more_parts

DEFAULT_BYTES = 5 << 20
"""Most bytes of a request whose method names no other number."""

_VALIDATE: Any = validate_pb2
_OTHER_PARTS = 1000
"""Fields of a request that are not repeated, those of newer callers among them."""


@cache
def most_request_bytes(method: str) -> int:
    """Returns the limit of a method, e.g. of `/lodestone.io.v1.ScanService/ScanTree`."""
    descriptor = _descriptor_of(method)
    if descriptor is None:
        return DEFAULT_BYTES
    return int(descriptor.GetOptions().Extensions[limits_pb2.max_request_bytes]) or DEFAULT_BYTES


def has_too_many_items(data: bytes, method: str) -> bool:
    """Returns whether a request has more items than the rules of its fields allow together.

    Those of its outermost fields are counted. What such an item holds is not looked at: no method
    that takes many bytes has lists in lists.

    Raises:
        NotAMessageError: it is no message.
    """
    most, packed = _most_parts(method)
    return has_more_parts(data, most, packed)


@cache
def _most_parts(method: str) -> tuple[int, frozenset[int]]:
    """Returns the parts that a request may have, and its fields of packed numbers."""
    descriptor = _descriptor_of(method)
    fields = [] if descriptor is None else descriptor.input_type.fields
    items = [
        field.GetOptions().Extensions[_VALIDATE.field].repeated.max_items
        for field in fields
        if field.is_repeated
    ]
    return sum(items) + _OTHER_PARTS, frozenset(each.number for each in fields if each.is_packed)


def _descriptor_of(method: str) -> Any:
    """Returns what the contracts say of a method; None where they know none of this name."""
    service_name, _, name = method.strip("/").rpartition("/")
    try:
        service = descriptor_pool.Default().FindServiceByName(service_name)
        return service.methods_by_name[name]
    except KeyError:
        return None
