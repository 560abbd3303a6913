"""Spans as the source starts them, found by walking its syntax."""

from __future__ import annotations

import ast
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.support.source_syntax import calls, files, name_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_METHODS = {
    "start_as_current_span": "",
    "command_span": "",
    "command_step": "",
    "_stage": "lodestone.indexer.",
}
"""What starts a span, and what stands before the name that it is given."""


@dataclass(slots=True)
class Written:
    """What the source puts on spans of one name."""

    attributes: set[str] = field(default_factory=set)
    may_fail_in_part: bool = False
    """Whether `tell_failed` is called on it."""


def attributes_of_calls() -> frozenset[str]:
    """Returns the attributes of spans of calls, whose names are those of the methods."""
    (path,) = (path for path in files() if path.name == "call_traces.py")
    nodes = ast.walk(ast.parse(path.read_text("utf-8")))
    constants = (str(node.value) for node in nodes if isinstance(node, ast.Constant))
    return frozenset(each for each in constants if each.startswith("rpc."))


def written_spans() -> Mapping[str, Written]:
    """Returns what each span whose name stands in the source is started with."""
    found: dict[str, Written] = defaultdict(Written)
    for path in files(with_command=True):
        for start, variable, body in _blocks(ast.parse(path.read_text("utf-8"))):
            match start:
                case ast.Call(func, [ast.Constant(str(name)), *_]) if name_of(func) in _METHODS:
                    span = found[f"{_METHODS[name_of(func)]}{name}"]
                    span.attributes |= _attributes(start)
                    span.may_fail_in_part |= any(
                        name_of(call.func) == "tell_failed" and _name(call.args[0]) == variable
                        for statement in body
                        for call in calls(statement)
                    )
    return found


def _blocks(tree: ast.AST) -> Iterator[tuple[ast.expr, str | None, list[ast.stmt]]]:
    """Yields what each `with` enters, the name that it gives it, and its body."""
    for node in ast.walk(tree):
        if isinstance(node, ast.With | ast.AsyncWith):
            for item in node.items:
                yield item.context_expr, _name(item.optional_vars), node.body


def _attributes(start: ast.Call) -> set[str]:
    given = (each.value for each in start.keywords if each.arg == "attributes")
    keys = (key for each in given if isinstance(each, ast.Dict) for key in each.keys)
    return {str(key.value) for key in keys if isinstance(key, ast.Constant)}


def _name(node: ast.expr | None) -> str | None:
    return node.id if isinstance(node, ast.Name) else None
