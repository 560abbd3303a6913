"""How many bytes the largest request has that breaks no rule of its fields."""

from __future__ import annotations

import re
from math import inf
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from deploy.reference.limits import FREE
from tests.support.contract_fields import FIELD_RULES

_TEXTS = {FieldDescriptor.CPPTYPE_STRING}
_FIXED = {
    FieldDescriptor.CPPTYPE_BOOL: 1,
    FieldDescriptor.CPPTYPE_FLOAT: 4,
    FieldDescriptor.CPPTYPE_DOUBLE: 8,
}
_VARINT = 10
"""Most bytes of a number that is not fixed."""


def largest_bytes(message: Any) -> float:
    """Returns the bytes of the largest message of a type; infinite where a field has no bound."""
    return sum(_field_bytes(field) for field in message.fields)


def _field_bytes(field: Any) -> float:
    rules = field.GetOptions().Extensions[FIELD_RULES]
    if not field.is_repeated:
        return _value_bytes(field, rules)
    return int(rules.repeated.max_items) * _value_bytes(field, rules.repeated.items)


def _value_bytes(field: Any, rules: Any) -> float:
    """Returns the bytes of one value, with its tag and, where it has one, its length."""
    tag = len(_varint(field.number << 3))
    if field.cpp_type not in _TEXTS and field.message_type is None:
        return tag + _FIXED.get(field.cpp_type, _VARINT)
    if field.message_type is None:
        size = _text_bytes(field, rules)
    elif field.message_type.full_name.startswith("lodestone."):
        size = largest_bytes(field.message_type)
    else:
        size = 2 * (1 + _VARINT)  # a time or a duration: two numbers
    return size if size == inf else tag + len(_varint(int(size))) + size


def _text_bytes(field: Any, rules: Any) -> float:
    """Returns the most bytes of a string or of bytes, without the length."""
    if field.type == FieldDescriptor.TYPE_BYTES:
        most = rules.bytes.len or rules.bytes.max_len
    elif rules.string.uuid:
        most = 36
    elif rules.string.pattern:  # each is of ASCII alone
        parser: Any = re._parser  # type: ignore[attr-defined]
        most = parser.parse(rules.string.pattern).getwidth()[1]
    else:
        most = rules.string.max_bytes
    assert most or field.name in FREE, f"{field.full_name} has no bound that is known here"
    return int(most) or inf


def _varint(number: int) -> bytes:
    """Returns a number as it is sent."""
    digits = bytearray()
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    return bytes([*digits, number])
