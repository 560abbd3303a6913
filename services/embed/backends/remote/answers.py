"""Reads the body of an answer: rows in the order of the texts, or why it makes no sense."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from services.embed.model import Vectors

_MOST_DIMENSIONS = 16_000
_BYTES_PER_NUMBER = 32
"""A float in JSON has up to 24 characters, with its comma and some room."""
_FRAME_BYTES = 1 << 16


class MalformedAnswerError(Exception):
    """The answer does not have the form that was agreed; the message holds nothing of it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Rows of length one, in order; a row that is no vector is all NaN.

    `tokens` is what the provider counts for the request, if it tells.
    """

    rows: Vectors
    tokens: int | None


def most_bytes(count: int, dimensions: int) -> int:
    """Returns the size above which an answer of so many rows makes no sense."""
    return _FRAME_BYTES + count * (dimensions or _MOST_DIMENSIONS) * _BYTES_PER_NUMBER


def read_answer(body: bytes, *, count: int, dimensions: int) -> Answer:
    """Returns the rows of an answer; dimensions of 0 takes those of the first row.

    A row of another size among right ones, one that is zero, or one that holds a number that is
    not finite comes back as NaN: it is the outcome of its text alone.

    Raises:
        MalformedAnswerError: it is no JSON of that form, or the count or all sizes are wrong.
    """
    try:
        # A number of thousands of digits, and nesting without end, end here too.
        message = json.loads(body)
        items = message["data"]
        rows = [_row(item["embedding"]) for item in _in_order(items, count)]
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
        raise MalformedAnswerError("it is not of the form of the API") from None
    size = dimensions or len(rows[0])
    if not 1 <= size <= _MOST_DIMENSIONS or all(len(row) != size for row in rows):
        raise MalformedAnswerError("its vectors are of another size")
    table = np.full((count, size), np.nan, dtype=np.float64)
    for at, row in enumerate(rows):
        if len(row) == size:
            table[at] = row
    return Answer(_normalised(table), _tokens(message))


def _in_order(items: list[Any], count: int) -> list[Any]:
    if len(items) != count:
        raise ValueError("another number of rows")
    if all("index" not in item for item in items):
        return items  # some servers leave it out and keep the order
    by_index = {_index(item): item for item in items}
    return [by_index[at] for at in range(count)]


def _index(item: Any) -> int:
    index = item["index"]
    if type(index) is not int:
        raise TypeError("an index is a whole number")
    return index


def _row(embedding: Any) -> npt.NDArray[np.float64]:
    if isinstance(embedding, str):
        try:
            data = base64.b64decode(embedding, validate=True)
        except binascii.Error as error:
            raise ValueError("no base64") from error
        return np.frombuffer(data, dtype="<f4").astype(np.float64)
    row = np.array(embedding, dtype=np.float64)
    if row.ndim != 1:
        raise ValueError("a row has one axis")
    return row


def _normalised(table: npt.NDArray[np.float64]) -> Vectors:
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        norms = np.linalg.norm(table, axis=1, keepdims=True)
        rows = table / norms  # a row of zeros becomes NaN, as does one with an infinity
    rows[~np.isfinite(rows).all(axis=1)] = np.nan
    vectors: Vectors = rows.astype(np.float32)
    return vectors


def _tokens(message: Any) -> int | None:
    usage = message.get("usage")
    tokens = usage.get("total_tokens") if isinstance(usage, dict) else None
    return tokens if type(tokens) is int and tokens >= 0 else None
