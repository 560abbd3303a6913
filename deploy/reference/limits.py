"""Every limit of a request's fields, as a page of documentation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from buf.validate import validate_pb2
from google.protobuf import descriptor_pool

from services.embed.app import EmbedApp
from services.indexer.app import IndexerApp
from services.io.app import IoApp
from services.runtime.request_sizes import DEFAULT_BYTES, most_request_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PAGE = Path(__file__).parent.parent.parent / "docs" / "limits-reference.md"

FREE = {
    # Numbers of a fixed size that are compared, taken as a smaller one or given back: no work and
    # no memory grows with them.
    "page_size": "more than the largest page is taken as that",
    "max_nodes": "more than the largest page is taken as that",
    "max_file_bytes": "the server's own limit counts if it is smaller",
    "start_line": "held against the file",
    "end_line": "held against the file",
    "start_byte": "held against the file: a range beyond its end fails that item alone",
    "end_byte": "held against the file",
    "size": "compared with the file's signature",
    "mtime_ns": "compared with the file's signature",
    "ctime_ns": "compared with the file's signature",
    "inode": "compared with the file's signature",
    "id": "given back with the answer",
    # As long as the whole message may be (`max_message_bytes`), which gRPC holds them to. A text
    # has a limit of its own besides, LODESTONE_EMBED_MAX_TEXT_CHARS, and fails alone.
    "texts": "as long as the message may be",
    "text": "as long as the message may be",
    "replacement": "as long as the message may be",
    "content": "as long as the message may be",
}
"""Fields that no rule bounds from above, by name, with what does."""

_HEAD = f"""\
# Limits of requests

Written by `make docs` from `protos/`. A request that breaks one of these ends with
`INVALID_ARGUMENT` before anything is done; the status carries a `google.rpc.BadRequest` that
names the field and the rule. A whole request has at most {DEFAULT_BYTES:,} bytes where no other
number is named for its method; a larger one ends likewise before it is read, and the field that is
named is `request`. So does one above {DEFAULT_BYTES:,} bytes whose lists have more items together
than their rules allow. Any message may have as many bytes as
`LODESTONE_<SERVICE>_MAX_MESSAGE_BYTES` says, and a service handles as many calls at once as
`LODESTONE_<SERVICE>_MAX_CONCURRENT_CALLS`; more of either ends with `RESOURCE_EXHAUSTED`. What a
request names beyond these rules (a page, a budget) is in the contracts.
"""
_ANY_BYTES = 1 << 30
"""What methods name that take as large a request as the server takes messages."""

_PROCESSES = (("io", IoApp), ("embed", EmbedApp), ("indexer", IndexerApp))
_VALIDATE: Any = validate_pb2
_BYTES = {"min_bytes": "at least {} bytes", "max_bytes": "at most {} bytes", "len": "{} bytes"}
_WORDS = {
    "string": {**_BYTES, "min_len": "at least {} characters", "max_len": "at most {} characters"},
    "bytes": {**_BYTES, "min_len": "at least {} bytes", "max_len": "at most {} bytes"},
    "repeated": {"min_items": "at least {} items", "max_items": "at most {} items"},
    "map": {"min_pairs": "at least {} pairs", "max_pairs": "at most {} pairs"},
    "number": {"gte": "≥ {}", "gt": "> {}", "lte": "≤ {}", "lt": "< {}"},
}
"""How each rule is told, by the kind of field."""

_FLAGS = {
    "uuid": "a UUID",
    "unique": "no item twice",
    "defined_only": "a value of the contracts",
    "finite": "a finite number",
}
"""How rules that are on or off are told."""


def page() -> str:
    """Returns the page's text."""
    pool = descriptor_pool.Default()
    parts = [_HEAD]
    for process, app in _PROCESSES:
        parts.append(f"\n## {process}\n")
        methods = [
            method
            for service in app.service_names
            for method in pool.FindServiceByName(service).methods
            if service.startswith("lodestone.")
        ]
        parts += _sizes(methods)
        requests = {method.input_type.full_name: method.input_type for method in methods}
        for message in sorted(_within(requests.values()), key=lambda each: each.full_name):
            parts += _section(message)
    return "".join(parts)


def _sizes(methods: Iterable[Any]) -> Iterator[str]:
    """Yields the table of methods that name how many bytes their requests may have."""
    names = [f"{method.containing_service.full_name}/{method.name}" for method in methods]
    sizes = {name: most_request_bytes(name) for name in sorted(names)}
    named = {name: most for name, most in sizes.items() if most != DEFAULT_BYTES}
    if named:
        yield "\n| method | bytes of a request |\n|---|---|\n"
    for name, most in named.items():
        limit = "as long as the message may be" if most >= _ANY_BYTES else f"at most {most:,}"
        yield f"| `{name}` | {limit} |\n"


def _within(messages: Iterable[Any]) -> list[Any]:
    """Returns messages and our own messages in them, each once."""
    found: dict[str, Any] = {}
    waiting = list(messages)
    while waiting:
        message = waiting.pop()
        if message.full_name in found:
            continue
        found[message.full_name] = message
        waiting += [
            field.message_type
            for field in message.fields
            if field.message_type is not None
            and field.message_type.full_name.startswith("lodestone.")
            and not field.message_type.GetOptions().map_entry
        ]
    return list(found.values())


def _section(message: Any) -> Iterator[str]:
    """Yields the part of a message: a table of its fields, and rules over several of them."""
    if not message.fields:
        return
    yield f"\n### {message.full_name}\n\n| field | limits |\n|---|---|\n"
    for field in message.fields:
        rules = field.GetOptions().Extensions[_VALIDATE.field]
        limits = [*_limits(rules)]
        if field.name in FREE and not any("most" in each or "≤" in each for each in limits):
            limits.append(FREE[field.name])
        if not limits and field.message_type is not None:
            own = field.message_type.full_name.startswith("lodestone.")
            limits.append("as its own fields" if own else "none: of one fixed size")
        elif not limits and field.type == field.TYPE_BOOL:
            limits.append("true or false")
        elif not limits and field.enum_type is not None:
            limits.append("set by the service")
        yield f"| `{field.name}` | {'; '.join(limits).replace('|', chr(92) + '|')} |\n"
    for rule in message.GetOptions().Extensions[_VALIDATE.message].cel:
        yield f"\nAnd: {rule.message}.\n"


def _limits(rules: Any) -> Iterator[str]:
    if rules.required:
        yield "required"
    kind = rules.WhichOneof("type")
    if kind is not None:
        yield from _limits_of_kind(kind, getattr(rules, kind))
    for rule in rules.cel:
        yield rule.message


def _limits_of_kind(kind: str, rules: Any) -> Iterator[str]:
    words = _WORDS.get(kind, _WORDS["number"])
    for field, value in rules.ListFields():
        if field.name in words:
            yield words[field.name].format(_shown(value))
        elif field.name == "items":
            yield from (f"each {limit}" for limit in _limits(value))
        elif field.name in {"keys", "values"}:
            yield from (f"each of its {field.name} {limit}" for limit in _limits(value))
        elif field.name == "pattern":
            yield f"`{value}`"
        elif field.name in _FLAGS:
            yield _FLAGS[field.name]
        elif field.name == "not_in":
            yield f"not {', '.join(map(str, value))}"
        elif field.name == "in":
            yield f"one of {', '.join(map(str, value))}"
        else:
            yield f"{field.name} {value}"


def _shown(value: Any) -> str:
    return value.ToJsonString() if hasattr(value, "ToJsonString") else f"{value:,}"
