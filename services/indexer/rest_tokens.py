"""Tokens that hold what is left of a result, so that its pages stay as they were found.

Nothing is kept between two pages: whichever replica is asked, after whatever was written meanwhile
and however late, it goes on in the order of the first page. See ADR 25.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from typing import TYPE_CHECKING, Any

from services.runtime.errors import PageTokenError

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_BYTES = 4 << 20
"""Longest content of a token; one that says more was not made here."""

MOST_ROWS = 80_000
"""Most rows of two numbers that a token surely holds."""

_LARGEST_NUMBER = (1 << 63) - 1

Row = tuple[float, ...]


def make_rest_token(tables: Sequence[Sequence[Row]], *request: Any) -> str:
    """Returns a token for rows that are left of a request's result."""
    payload = json.dumps([_digest(request), tables], separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(zlib.compress(payload, 6)).decode()


def read_rest_token(token: str, widths: Sequence[int], *request: Any) -> list[list[Row]]:
    """Returns the rows in a token: one table for each width, which is that of its rows.

    Raises:
        PageTokenError: the token was not made here, or for another request.
    """
    try:
        inflate = zlib.decompressobj()
        payload = inflate.decompress(base64.urlsafe_b64decode(token.encode()), MOST_BYTES)
        digest, tables = json.loads(payload)
        rows = [[tuple(row) for row in table] for table in tables]
    except (ValueError, TypeError, RecursionError, zlib.error):
        raise PageTokenError("The page token is not one of this server's.") from None
    if digest != _digest(request):
        raise PageTokenError("The page token belongs to another request.")
    if len(rows) != len(widths) or not all(
        len(row) == width and all(map(_is_number, row))
        for table, width in zip(rows, widths, strict=True)
        for row in table
    ):
        raise PageTokenError("The page token is not one of this server's.")
    return rows


def _is_number(value: Any) -> bool:
    return type(value) in {int, float} and 0 <= value <= _LARGEST_NUMBER


def _digest(request: tuple[Any, ...]) -> str:
    return hashlib.sha256(json.dumps(request, default=str).encode()).hexdigest()[:16]
