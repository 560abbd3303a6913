"""Reads requests off the wire; what is no message, or too large, becomes an error like any other.

What a deserialiser raises inside of grpc would end the call as UNKNOWN with a Python error's text,
past metrics, traces and the documented reasons.

A request of too many bytes is left unread: as a message, its parts may take many times as much
memory, and the rules of its fields are looked at when all of them are there. So is one of more
items than its rules allow, where a method takes many bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError

from services.runtime.errors import InvalidRequestError
from services.runtime.request_sizes import (
    DEFAULT_BYTES,
    has_too_many_items,
    most_request_bytes,
)
from services.runtime.wire import NotAMessageError

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class _Unread:
    """Stands for a request that was not read, until it reaches code that may raise."""

    message: str
    problem: str


_BROKEN = _Unread(
    "The request cannot be read: it is cut off, not a message of this method, or has a text that "
    "is not UTF-8.",
    "is not a valid message",
)
_TOO_MANY = _Unread(
    "The request has more items than this method takes. Ask for less at once, in several requests.",
    "has more items than the rules of its fields allow",
)


def reader(parse: Callable[[bytes], Any], method: str) -> Callable[[bytes], Any]:
    """Returns a deserialiser that never raises on what a caller sends.

    Args:
        parse: makes a message of bytes.
        method: whose requests they are, e.g. `/lodestone.io.v1.ScanService/ScanTree`.
    """
    most_bytes = most_request_bytes(method)

    def read(data: bytes) -> Any:
        if len(data) > most_bytes:
            return _too_large(len(data), most_bytes)
        try:
            if len(data) > DEFAULT_BYTES and has_too_many_items(data, method):
                return _TOO_MANY
            return parse(data)
        except (DecodeError, NotAMessageError):
            return _BROKEN

    return read


def readable(request: Any) -> Any:
    """Returns a request that `reader` read.

    Raises:
        InvalidRequestError: it was none, or has too many bytes or items.
    """
    if isinstance(request, _Unread):
        raise InvalidRequestError(request.message, metadata={"request": request.problem})
    return request


def _too_large(size: int, most: int) -> _Unread:
    return _Unread(
        f"The request has {size:,} bytes; this method takes at most {most:,}. Ask for less at "
        "once, in several requests.",
        f"has {size:,} bytes; at most {most:,}",
    )
