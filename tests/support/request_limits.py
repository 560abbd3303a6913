"""What bounds each field of a request: a rule, or what the page of limits names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from google.protobuf.descriptor import FieldDescriptor

from deploy.reference.limits import FREE
from tests.support.contract_fields import FIELD_RULES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.support.contract_fields import FieldPath

LONGEST_BYTES = 4 << 20
"""No string and no field of bytes may be longer: that is a page token of a search."""

MOST_ITEMS = 100_000
"""No field may have more items: these are the nodes of a scoped run."""

_TEXTS = {FieldDescriptor.CPPTYPE_STRING}
_NUMBERS = {
    FieldDescriptor.CPPTYPE_INT32: "int32",
    FieldDescriptor.CPPTYPE_INT64: "int64",
    FieldDescriptor.CPPTYPE_UINT32: "uint32",
    FieldDescriptor.CPPTYPE_UINT64: "uint64",
    FieldDescriptor.CPPTYPE_FLOAT: "float",
    FieldDescriptor.CPPTYPE_DOUBLE: "double",
}


def excesses_of(path: FieldPath) -> list[tuple[str, Sequence[Any]]]:
    """Returns values of a field that are too many or too large: the name to expect, and the values.

    A number is one past its bound, a text or its like longer than any may be. There is none for a
    field of one fixed size, and for one that is free.

    Raises:
        AssertionError: a repeated field or a number has no upper bound, or too high a one.
    """
    field = path[-1]
    rules = field.GetOptions().Extensions[FIELD_RULES]
    found: list[tuple[str, Sequence[Any]]] = []
    if field.is_repeated:
        most = rules.map.max_pairs if _is_map(field) else rules.repeated.max_items
        assert 0 < most <= MOST_ITEMS, f"{field.full_name} takes any number of items"
        if not _is_map(field):
            found.append((_indexed(path, items=False), [_small(field)] * (most + 1)))
        rules = rules.repeated.items
    if field.name in FREE or field.message_type is not None or field.enum_type is not None:
        return found
    if field.cpp_type in _TEXTS:
        filler: Any = "/" if field.type == FieldDescriptor.TYPE_STRING else b"/"
        found.append((_indexed(path, items=True), [filler * (LONGEST_BYTES + 1)]))
    elif field.cpp_type in _NUMBERS:
        kind = _NUMBERS[field.cpp_type]
        bounds = getattr(rules, kind)
        limit = bounds.lte if bounds.HasField("lte") else bounds.lt
        is_bound = bounds.HasField("lte") or bounds.HasField("lt")
        is_id = field.name.endswith(("node_id", "node_ids"))  # looked up, whatever it is
        assert is_bound or is_id, f"{field.full_name} has no upper bound"
        if is_bound:
            found.append((_indexed(path, items=True), [limit + 1]))
    return found


def _is_map(field: Any) -> bool:
    return bool(field.message_type and field.message_type.GetOptions().map_entry)


def _small(field: Any) -> Any:
    if field.message_type is not None:
        return field.message_type._concrete_class()
    if field.cpp_type in _TEXTS:
        return "a" if field.type == FieldDescriptor.TYPE_STRING else b"a"
    return 1


def _indexed(path: FieldPath, *, items: bool) -> str:
    """Returns a path as a violation spells it: with the first index where a field is repeated."""
    inner = [f"{field.name}[0]" if field.is_repeated else field.name for field in path[:-1]]
    last = path[-1]
    return ".".join([*inner, f"{last.name}[0]" if items and last.is_repeated else last.name])
