"""The modules of the services and what they call, by their syntax."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SERVICES = Path(__file__).parent.parent.parent / "services"


def modules_that(holds: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
    """Yields the name of each module whose text fulfils a condition, and the service it is of."""
    for path in files():
        if holds(path.read_text("utf-8")):
            parts = path.relative_to(SERVICES).with_suffix("").parts
            yield ".".join(("services", *parts)), parts[0]


def files(*, with_command: bool = False) -> Iterator[Path]:
    """Yields the modules of processes that serve; the command has spans, but no log."""
    for path in sorted(SERVICES.rglob("*.py")):
        if with_command or owner(path) != "cli":
            yield path


def owner(path: Path) -> str:
    """Returns the folder of the services that a module is in."""
    return path.relative_to(SERVICES).parts[0]


def place(path: Path, node: ast.expr) -> str:
    """Returns where a module has an expression, for messages."""
    return f"{path.relative_to(SERVICES.parent)}:{node.lineno}"


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    """Yields the calls in a piece of syntax."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def name_of(function: ast.expr) -> str:
    """Returns the name of a function or method that is called, without where it is from."""
    match function:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
    return ""
