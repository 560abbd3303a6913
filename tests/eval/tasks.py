"""Makes retrieval tasks of a tree: what is asked is not in the text that is indexed.

Docstrings are asked for, and comments that describe a function in other languages than Python, so
they are removed; names, imports and tests are looked up as they are.
"""

from __future__ import annotations

import ast
import hashlib
import re
import shutil
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.eval import commented
from tests.eval.definitions import Definition
from tests.eval.scoring import Target

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

MOST_PER_KIND = 60
_LEAST_WORDS, _MOST_CHARACTERS = 5, 300
_IGNORED = ("*.rst", "*.md", "docs", "*.txt", "*.min.js")

_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_TEST = re.compile(r"(^|/)tests?/|(^|/)test_|(^|/)conftest")


@dataclass(frozen=True, slots=True)
class Task:
    """A question that was made of a tree, and what answers it."""

    kind: str
    query: str
    targets: tuple[Target, ...]


def make_tree(source: Path, target: Path) -> list[Task]:
    """Copies a tree without its docstrings; returns the tasks, the same ones each time."""
    found, imports = strip_tree(source, target)
    return [*chosen(_tasks(found)), *chosen(_import_tasks(imports, target))]


def strip_tree(source: Path, target: Path) -> tuple[list[Definition], list[tuple[str, str]]]:
    """Copies a tree without its docstrings; returns what it defines, and what it imports.

    An import is the end of a path, and the statement.
    """
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*_IGNORED))
    found: list[Definition] = []
    imports: list[tuple[str, str]] = []
    for file in sorted(target.rglob("*")):
        path = file.relative_to(target).as_posix()
        if file.suffix == ".py":
            text = file.read_text("utf-8")
            docs = list(_docstrings(ast.parse(text)))
            file.write_text(_without(text, [node for node, _ in docs]), encoding="utf-8")
            tree = ast.parse(file.read_text("utf-8"))
            found += _definitions(path, tree, {node.lineno: doc for node, doc in docs})
            imports += _imports(tree)
        elif file.suffix in commented.SUFFIXES:
            text, definitions = commented.read(path, file.read_text("utf-8"))
            file.write_text(text, encoding="utf-8")
            found += definitions
            imports += commented.imports(path, text)
    return found, imports


def definitions(root: Path) -> list[Definition]:
    """Returns what the files of a tree define, in the order of their paths."""
    found: list[Definition] = []
    for file in sorted(root.rglob("*")):
        path = file.relative_to(root).as_posix()
        if file.suffix == ".py":
            found += _definitions(path, ast.parse(file.read_text("utf-8")), {})
        elif file.suffix in commented.SUFFIXES:
            found += commented.read(path, file.read_text("utf-8"))[1]
    return found


def _tasks(found: list[Definition]) -> Iterator[Task]:
    code = [item for item in found if not item.is_test]
    names = Counter(item.name for item in code)
    told = Counter(_told(item) for item in code)
    for item in code:
        query = _told(item)
        # Whoever has several answers is no task; the recorded scores of Python are older than this.
        is_clear = told[query] == 1 or item.path.endswith(".py")
        if len(query.split()) >= _LEAST_WORDS and item.is_function and is_clear:
            yield Task("docstring", query, (item.target,))
        if names[item.name] == 1 and not item.name.startswith("_"):
            yield Task("symbol", item.name, (item.target,))
    unique = {item.name: item for item in code if names[item.name] == 1}
    for item in found:
        tested = item.name.removeprefix("test_")
        if item.is_test and tested != item.name and tested in unique:
            yield Task("test", f"what {item.name} tests", (unique[tested].target,))


def _told(item: Definition) -> str:
    return " ".join(item.doc.split())[:_MOST_CHARACTERS]


def _import_tasks(imports: Iterable[tuple[str, str]], root: Path) -> Iterator[Task]:
    paths = [file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file()]
    for end, statement in sorted(set(imports)):
        ends = (f"/{end}", f"/{end}.py", f"/{end}/__init__.py")
        fits = [path for path in paths if f"/{path}".endswith(ends)]
        if len(fits) == 1:
            yield Task("import", statement, (Target(fits[0]),))


def chosen(tasks: Iterable[Task]) -> list[Task]:
    """Returns at most `MOST_PER_KIND` tasks of a kind, spread over the tree by their hash."""
    kinds: dict[str, list[Task]] = {}
    for task in tasks:
        kinds.setdefault(task.kind, []).append(task)
    return [task for some in kinds.values() for task in sorted(some, key=_hash)[:MOST_PER_KIND]]


def _hash(task: Task) -> bytes:
    return hashlib.sha256(f"{task.query}{task.targets}".encode()).digest()


def _docstrings(tree: ast.Module) -> Iterator[tuple[ast.Expr, str]]:
    """Yields the statements that are docstrings, with their texts."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, *_DEFINITIONS)):
            text = ast.get_docstring(node)
            first = node.body[0] if node.body else None
            if text is not None and isinstance(first, ast.Expr):
                yield first, text


def _without(text: str, nodes: list[ast.Expr]) -> str:
    """Returns a module without some docstrings; lines stay, so that places stay the same."""
    lines = text.splitlines(keepends=True)
    for node in nodes:
        assert node.end_lineno is not None
        indent = lines[node.lineno - 1][: node.col_offset]
        is_alone = not indent.strip()
        for number in range(node.lineno - 1, node.end_lineno):
            lines[number] = "\n"
        lines[node.lineno - 1] = f"{indent if is_alone else indent + ' '}...\n"
    return "".join(lines)


def _definitions(path: str, tree: ast.Module, docs: Mapping[int, str]) -> Iterator[Definition]:
    """Yields what a module defines; `docs` are the docstrings that stood on its lines."""
    for node in ast.walk(tree):
        if isinstance(node, _DEFINITIONS):
            assert node.end_lineno is not None
            yield Definition(
                path,
                node.name,
                min([node.lineno, *(item.lineno for item in node.decorator_list)]),
                node.end_lineno,
                docs.get(node.body[0].lineno, ""),
                is_function=not isinstance(node, ast.ClassDef),
                is_test=bool(_TEST.search(path)),
            )


def _imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and len(node.names) <= 2:
            dots, names = "." * node.level, ", ".join(item.name for item in node.names)
            yield node.module.replace(".", "/"), f"from {dots}{node.module} import {names}"
