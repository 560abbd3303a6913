"""Reads requests off the wire; bytes that are no message become an error like any other.

What a deserialiser raises inside of grpc would end the call as UNKNOWN with a Python error's text,
past metrics, traces and the documented reasons.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError

from services.runtime.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable

_UNREADABLE = object()
"""Stands for a request that could not be read, until it reaches code that may raise."""


def reader(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Returns a deserialiser that never raises on what a caller sends."""

    def read(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError:
            return _UNREADABLE

    return read


def readable(request: Any) -> Any:
    """Returns a request that `reader` read.

    Raises:
        InvalidRequestError: it was none.
    """
    if request is _UNREADABLE:
        raise InvalidRequestError(
            "The request cannot be read: it is cut off, not a message of this method, or has a "
            "text that is not UTF-8.",
            metadata={"request": "is not a valid message"},
        )
    return request
