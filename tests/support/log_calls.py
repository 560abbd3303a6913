"""Log lines as the source writes them, found by walking its syntax."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from tests.support.source_syntax import calls, files, name_of, owner, place

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_LEVELS = {"debug": "debug", "info": "info", "warning": "warning", "error": "error"}
_METHODS = {**_LEVELS, "exception": "error"}
_MAKES_LOGGERS = "services/runtime/log.py"


@dataclass(frozen=True, slots=True)
class LogCall:
    """One place that logs."""

    place: str
    service: str
    """`io`, `embed`, `indexer`, or `runtime` for all of them."""
    event: str
    level: str
    fields: frozenset[str]
    """What the line tells beside the fields of every line."""


@cache
def log_calls() -> Sequence[LogCall]:
    """Returns every line that the source logs; a logger whose use cannot be read is an error."""
    return tuple(
        call
        for path in files()
        if not path.as_posix().endswith(_MAKES_LOGGERS)
        for call in _log_calls(path, ast.parse(path.read_text("utf-8")))
    )


def _log_calls(path: Path, tree: ast.AST) -> Iterator[LogCall]:
    kept = dict(_kept_loggers(tree))
    read = {id(bind.func) for bind in kept.values()}
    for node in calls(tree):
        match node.func:
            case ast.Attribute(ast.Name(name), method) if name in kept and method in _METHODS:
                yield _log_call(path, node, method, _fields(kept[name], path))
            case ast.Attribute(logger, method) if _makes_logger(logger) and method in _METHODS:
                read.add(id(node.func))
                yield _log_call(path, node, method)
    used = {id(node) for node in ast.walk(tree) if _is_use(node)}
    made = sum(1 for node in calls(tree) if _makes_logger(node))
    assert (used, len(used)) == (read, made), f"{path}: a logger whose lines are not known"


def _log_call(
    path: Path, node: ast.Call, method: str, kept: frozenset[str] = frozenset()
) -> LogCall:
    where, event = place(path, node), node.args[0]
    assert isinstance(event, ast.Constant), f"{where}: an event's name is a constant"
    told = _fields(node, path) | kept | ({"error"} if method == "exception" else set())
    return LogCall(where, owner(path), str(event.value), _METHODS[method], told)


def _fields(node: ast.Call, path: Path) -> frozenset[str]:
    names = {"error" if each.arg == "exc_info" else each.arg for each in node.keywords}
    told = {name for name in names if name is not None}
    assert told == names, f"{place(path, node)}: the fields of a line stand there by name"
    return frozenset(told)


def _kept_loggers(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Yields the name of each logger that is kept, and the `bind` that gives it fields."""
    for node in ast.walk(tree):
        match node:
            case ast.Assign([ast.Name(name)], ast.Call(ast.Attribute(logger, "bind")) as bind) if (
                _makes_logger(logger)
            ):
                yield name, bind


def _is_use(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and _makes_logger(node.value)


def _makes_logger(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and name_of(node.func) == "get_logger"
