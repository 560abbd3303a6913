"""Page tokens: opaque to callers, bound to the request that they were issued for."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any

from services.runtime.errors import PageTokenError

DEFAULT_PAGE_SIZE = 50
LARGEST_PAGE_SIZE = 1000
_SURROGATE = re.compile("[\ud800-\udfff]")
_LARGEST_NUMBER = (1 << 62) - 1
"""The largest position; PostgreSQL's numbers end a little beyond."""


def page_size(requested: int, default: int = DEFAULT_PAGE_SIZE) -> int:
    """Returns the size of a page: the default for 0, at most the largest."""
    return min(requested or default, LARGEST_PAGE_SIZE)


def make_token(position: Any, *request: Any) -> str:
    """Returns a token for a position (JSON) in the results of a request."""
    payload = json.dumps([position, _digest(request)], separators=(",", ":"))
    return base64.urlsafe_b64encode(payload.encode()).decode()


def read_token(token: str, *request: Any, start: Any) -> Any:
    """Returns the position in a token, or `start` for none: it is of the same types.

    Raises:
        PageTokenError: the token was not made here, or for another request.
    """
    if not token:
        return start
    try:
        position, digest = json.loads(base64.urlsafe_b64decode(token.encode()))
    except (ValueError, TypeError, RecursionError):
        raise PageTokenError("The page token is not one of this server's.") from None
    if digest != _digest(request):
        raise PageTokenError("The page token belongs to another request.")
    if not _alike(position, start):
        raise PageTokenError("The page token is not one of this server's.")
    return position


def _alike(position: Any, start: Any) -> bool:
    if type(position) is not type(start):
        return False
    match position:
        case list():
            return len(position) == len(start) and all(map(_alike, position, start))
        case int():
            return 0 <= position <= _LARGEST_NUMBER
        case str():
            return "\0" not in position and not _SURROGATE.search(position)
        case _:
            return False


def _digest(request: tuple[Any, ...]) -> str:
    return hashlib.sha256(json.dumps(request, default=str).encode()).hexdigest()[:16]
