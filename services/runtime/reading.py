"""Reads requests off the wire; what is no message, or too large, becomes an error like any other.

What a deserialiser raises inside of grpc would end the call as UNKNOWN with a Python error's text,
past metrics, traces and the documented reasons.

A request of too many bytes is left unread: as a message, its parts may take many times as much
memory, and the rules of its fields are looked at when all of them are there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError

from services.runtime.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable

_UNREADABLE = object()
"""Stands for a request that could not be read, until it reaches code that may raise."""


@dataclass(frozen=True, slots=True)
class _TooLarge:
    """Stands likewise for a request of too many bytes, which is not read."""

    size: int
    most: int


def reader(parse: Callable[[bytes], Any], most_bytes: int) -> Callable[[bytes], Any]:
    """Returns a deserialiser that never raises on what a caller sends.

    Args:
        parse: makes a message of bytes.
        most_bytes: a request of more is not read.
    """

    def read(data: bytes) -> Any:
        if len(data) > most_bytes:
            return _TooLarge(len(data), most_bytes)
        try:
            return parse(data)
        except DecodeError:
            return _UNREADABLE

    return read


def readable(request: Any) -> Any:
    """Returns a request that `reader` read.

    Raises:
        InvalidRequestError: it was none, or has too many bytes.
    """
    if isinstance(request, _TooLarge):
        raise InvalidRequestError(
            f"The request has {request.size:,} bytes; this method takes at most {request.most:,}. "
            "Ask for less at once, in several requests.",
            metadata={"request": f"has {request.size:,} bytes; at most {request.most:,}"},
        )
    if request is _UNREADABLE:
        raise InvalidRequestError(
            "The request cannot be read: it is cut off, not a message of this method, or has a "
            "text that is not UTF-8.",
            metadata={"request": "is not a valid message"},
        )
    return request
