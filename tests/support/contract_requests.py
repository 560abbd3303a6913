"""Requests of any method, made from the contracts: whole enough to pass every rule of theirs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from tests.support.contract_fields import FIELD_RULES, new_request

_REQUEST_ID = "0d0d0d0d-0000-4000-8000-00000000000d"


@dataclass(frozen=True, slots=True)
class Resources:
    """What a request names."""

    workspace: str
    """Its id, without `workspaces/`."""

    run: str
    """Resource name of a run."""

    root: str
    """Its id, without `roots/`."""

    node_ids: tuple[int, ...] = (1,)
    model: str = "models/hashing"

    def names(self) -> tuple[str, ...]:
        """Names that a field may be of, the most telling first."""
        return (
            f"workspaces/{self.workspace}",
            f"roots/{self.root}",
            self.model,
            self.run,
        )


def fill(method: Any, resources: Resources) -> Any:
    """Returns a request of a method that names resources wherever one can stand.

    Raises:
        AssertionError: a field asks for something that is not known here.
    """
    request = new_request(method)
    _fill(request, resources)
    return request


def resource_name(field: Any, resources: Resources) -> str | None:
    """Returns the name that stands in a field of resources; None: it holds no such name."""
    if field.type != FieldDescriptor.TYPE_STRING:
        return None
    if field.name == "workspace_id":
        return resources.workspace
    if field.name == "root_id":
        return resources.root
    if field.name in {"other_parents", "changed_since_index_run"}:
        is_run = field.name == "changed_since_index_run"
        return resources.run if is_run else f"workspaces/{resources.workspace}"
    if field.name not in {"parent", "name", "root", "model"}:
        return None
    pattern = field.GetOptions().Extensions[FIELD_RULES].string.pattern
    if not pattern:
        return resources.run
    for name in resources.names():
        if re.fullmatch(pattern, name):
            return name
    raise AssertionError(f"no name is known that {field.full_name} takes")


def _fill(message: Any, resources: Resources) -> None:
    for field in message.DESCRIPTOR.fields:
        rules = field.GetOptions().Extensions[FIELD_RULES]
        if field.message_type is not None:
            _fill_message(message, field, resources)
            continue
        value = resource_name(field, resources)
        if value is None:
            value = _needed(field, rules, resources)
        if value is None:
            continue
        if field.is_repeated:
            many = value if isinstance(value, tuple) else (value,)
            getattr(message, field.name).extend(many)
        else:
            setattr(message, field.name, value)


def _fill_message(message: Any, field: Any, resources: Resources) -> None:
    rules = field.GetOptions().Extensions[FIELD_RULES]
    if field.message_type.full_name == "google.protobuf.Duration":
        getattr(message, field.name).seconds = 1
    elif field.is_repeated:
        if rules.repeated.min_items:
            _fill(getattr(message, field.name).add(), resources)
    elif field.message_type.full_name.startswith("lodestone."):
        _fill(getattr(message, field.name), resources)


def _needed(field: Any, rules: Any, resources: Resources) -> Any:
    """Returns a value of a field that must have one; None for one that may be left out."""
    if field.name in {"node_ids", "node_id"}:
        return resources.node_ids if field.is_repeated else resources.node_ids[0]
    if field.enum_type is not None:
        return 1 if field.name == "symlink_policy" or list(rules.enum.not_in) == [0] else None
    if field.type == FieldDescriptor.TYPE_BYTES:
        return bytes(rules.bytes.len) if rules.bytes.len else None
    if field.cpp_type == FieldDescriptor.CPPTYPE_UINT32:
        return rules.uint32.gte or None
    if field.type != FieldDescriptor.TYPE_STRING:
        return None
    if rules.string.uuid:
        return _REQUEST_ID
    if field.name == "path":
        return "/nowhere" if field.containing_type.name == "Root" else "app.py"
    if field.name == "model_id":
        return resources.model.removeprefix("models/")
    is_needed = rules.string.min_len or rules.string.min_bytes or rules.repeated.min_items
    return "parse" if is_needed else None
