"""Log lines and spans as the source writes them, found by walking its syntax."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

SERVICES = Path(__file__).parent.parent.parent / "services"
_LEVELS = {"debug": "debug", "info": "info", "warning": "warning", "error": "error"}
_METHODS = {**_LEVELS, "exception": "error"}
_SPAN_METHODS = {"start_as_current_span", "start_span", "command_span", "command_step"}


@dataclass(frozen=True, slots=True)
class LogCall:
    """One place that logs."""

    place: str
    service: str
    """`io`, `embed`, `indexer`, or `runtime` for all of them."""
    event: str | None
    """None when the event's name is no constant."""
    level: str
    fields: frozenset[str]
    """Names of keywords; those of `**mapping` are not known here."""


def modules_that(holds: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
    """Yields the name of each module whose text fulfils a condition, and the service it is of."""
    for path in _files():
        if holds(path.read_text("utf-8")):
            parts = path.relative_to(SERVICES).with_suffix("").parts
            yield ".".join(("services", *parts)), parts[0]


def log_calls() -> Iterator[LogCall]:
    """Yields every call of a logger."""
    for path, node in _calls(_files()):
        if not isinstance(node.func, ast.Attribute) or node.func.attr not in _METHODS:
            continue
        if not _is_logger(ast.unparse(node.func.value)):
            continue
        names = {keyword.arg for keyword in node.keywords if keyword.arg}
        fields = {"error" if name == "exc_info" else name for name in names}
        if node.func.attr == "exception":
            fields.add("error")
        yield LogCall(
            f"{path.relative_to(SERVICES.parent)}:{node.lineno}",
            path.relative_to(SERVICES).parts[0],
            _constant(node),
            _METHODS[node.func.attr],
            frozenset(fields),
        )


def span_names() -> Iterator[str]:
    """Yields the name of each span that the source starts; `*` stands for what is put in."""
    for _, node in _calls(_files(with_command=True)):
        if _name_of(node.func) in _SPAN_METHODS and node.args:
            name = node.args[0]
            if isinstance(name, ast.Constant):
                yield str(name.value)
            elif isinstance(name, ast.JoinedStr):
                parts = (p.value if isinstance(p, ast.Constant) else "*" for p in name.values)
                yield "".join(map(str, parts))


def _name_of(function: ast.expr) -> str:
    """Returns the name of a function or method that is called, without where it is from."""
    return ast.unparse(function).rpartition(".")[2]


def _is_logger(target: str) -> bool:
    return target in {"get_logger()", "log.get_logger()", "log"}


def _constant(node: ast.Call) -> str | None:
    first = node.args[0] if node.args else None
    if isinstance(first, ast.Constant) and isinstance(first.value, str):
        return first.value
    return None


def _calls(files: Iterable[Path]) -> Iterator[tuple[Path, ast.Call]]:
    for path in files:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                yield path, node


def _files(*, with_command: bool = False) -> Iterator[Path]:
    """Yields the modules of processes that serve; the command has spans, but no log."""
    for path in sorted(SERVICES.rglob("*.py")):
        if with_command or path.relative_to(SERVICES).parts[0] != "cli":
            yield path
