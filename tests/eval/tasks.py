"""Makes retrieval tasks of a Python tree: what is asked is not in the text that is indexed.

Docstrings are asked for, so they are removed; names, imports and tests are looked up as they are.
"""

from __future__ import annotations

import ast
import hashlib
import re
import shutil
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.eval.scoring import Target

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

MOST_PER_KIND = 60
_LEAST_WORDS, _MOST_CHARACTERS = 5, 300
_MOST_OF_OTHERS = 0.5
"""A result may lie outside its target by this share: a whole class is no answer for a method."""

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_TEST = re.compile(r"(^|/)tests?/|(^|/)test_|(^|/)conftest")


@dataclass(frozen=True, slots=True)
class Task:
    """A question that was made of a tree, and what answers it."""

    kind: str
    query: str
    targets: tuple[Target, ...]


@dataclass(frozen=True, slots=True)
class _Found:
    path: str
    name: str
    node: Definition
    docstring: str

    @property
    def target(self) -> Target:
        first = min([self.node.lineno, *(item.lineno for item in self.node.decorator_list)])
        assert self.node.end_lineno is not None
        return Target(self.path, first, self.node.end_lineno, _MOST_OF_OTHERS)


def make_tree(source: Path, target: Path) -> list[Task]:
    """Copies a tree without its docstrings; returns the tasks, the same ones each time."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.rst", "*.md", "docs", "*.txt"))
    found: list[_Found] = []
    imports: list[tuple[str, str]] = []
    for file in sorted(target.rglob("*.py")):
        path = file.relative_to(target).as_posix()
        text = file.read_text("utf-8")
        docs = list(_docstrings(ast.parse(text)))
        file.write_text(_without(text, [node for node, _ in docs]), encoding="utf-8")
        tree = ast.parse(file.read_text("utf-8"))
        found += _definitions(path, tree, {node.lineno: doc for node, doc in docs})
        imports += _imports(tree)
    return [*_chosen(_tasks(found)), *_chosen(_import_tasks(imports, target))]


def _tasks(found: list[_Found]) -> Iterator[Task]:
    code = [item for item in found if not _TEST.search(item.path)]
    names = Counter(item.name for item in code)
    for item in code:
        words = item.docstring.split()
        if len(words) >= _LEAST_WORDS and isinstance(item.node, _DEFINITIONS[:2]):
            yield Task("docstring", " ".join(words)[:_MOST_CHARACTERS], (item.target,))
        if names[item.name] == 1 and not item.name.startswith("_"):
            yield Task("symbol", item.name, (item.target,))
    unique = {item.name: item for item in code if names[item.name] == 1}
    for item in found:
        tested = item.name.removeprefix("test_")
        if _TEST.search(item.path) and tested != item.name and tested in unique:
            yield Task("test", f"what {item.name} tests", (unique[tested].target,))


def _import_tasks(imports: Iterable[tuple[str, str]], root: Path) -> Iterator[Task]:
    paths = [file.relative_to(root).as_posix() for file in root.rglob("*.py")]
    for module, statement in sorted(set(imports)):
        tail = module.replace(".", "/")
        ends = (f"/{tail}.py", f"/{tail}/__init__.py")
        fits = [path for path in paths if f"/{path}".endswith(ends)]
        if len(fits) == 1:
            yield Task("import", statement, (Target(fits[0]),))


def _chosen(tasks: Iterable[Task]) -> list[Task]:
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


def _definitions(path: str, tree: ast.Module, docs: Mapping[int, str]) -> Iterator[_Found]:
    """Yields what a module defines; `docs` are the docstrings that stood on its lines."""
    for node in ast.walk(tree):
        if isinstance(node, _DEFINITIONS):
            yield _Found(path, node.name, node, docs.get(node.body[0].lineno, ""))


def _imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and len(node.names) <= 2:
            dots, names = "." * node.level, ", ".join(item.name for item in node.names)
            yield node.module, f"from {dots}{node.module} import {names}"
