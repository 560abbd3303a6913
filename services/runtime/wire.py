"""Looks at the outermost fields of a message without reading it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

_LONGEST_NUMBER = 10
_VARINT, _FIXED64, _SIZED, _FIXED32 = 0, 1, 2, 5


class NotAMessageError(Exception):
    """The bytes are no message of proto3."""


def has_more_parts(data: bytes, most: int, packed: AbstractSet[int]) -> bool:
    """Returns whether a message has more than so many parts, each an item or another field.

    It takes as long as there are parts, `most` at most, whatever they hold.

    Args:
        data: the message as it is sent.
        most: the parts that it may have.
        packed: fields of numbers that may stand in one part; as many count as it must hold.

    Raises:
        NotAMessageError: it is no message.
    """
    at = parts = 0
    while at < len(data):
        parts += 1
        tag, at = _number(data, at)
        kind = tag & 7
        if kind == _SIZED:
            size, at = _number(data, at)
            at += size
            if tag >> 3 in packed:
                parts += size // _LONGEST_NUMBER
        elif kind == _VARINT:
            _, at = _number(data, at)
        elif kind in {_FIXED64, _FIXED32}:
            at += 8 if kind == _FIXED64 else 4
        else:
            raise NotAMessageError("proto3 has no groups")
        if parts > most:
            return True
    if at > len(data):
        raise NotAMessageError("a field is cut off")
    return False


def _number(data: bytes, at: int) -> tuple[int, int]:
    """Returns the number that begins at a byte, and where it ends."""
    value = 0
    for shift, digit in enumerate(data[at : at + _LONGEST_NUMBER]):
        value |= (digit & 127) << 7 * shift
        if digit < 128:
            return value, at + shift + 1
    raise NotAMessageError("a number is cut off, or too long")
