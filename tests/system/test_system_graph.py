"""The code graph of a real package, held against a walk of its syntax trees by Python itself."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any

import pytest

from lodestone.indexer.v1 import search_service_pb2 as search_pb2
from lodestone.indexer.v1.search_service_pb2_grpc import SearchServiceStub
from services.cli.indexer import Indexer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.stack import Lodestone

Place = tuple[str, str]
"""A file and the name of a function or method in it."""

_CALLERS = {"function", "method"}
_SURE = {search_pb2.EDGE_RESOLUTION_LOCAL, search_pb2.EDGE_RESOLUTION_IMPORTED}


@pytest.fixture(scope="module")
def indexed(product: Lodestone, flask_source: Path) -> str:
    """The workspace of Flask's package."""
    report = product.index(flask_source / "src" / "flask")
    return f"workspaces/{report['workspace']}"


@pytest.fixture
def searches(product: Lodestone, indexed: str) -> Iterator[Any]:
    """The indexer's search service."""
    indexer = Indexer(product.state.processes["indexer"].address)
    yield SearchServiceStub(indexer.channel)
    indexer.close()


def test_callers_of_flasks_functions_are_those_that_python_finds(
    searches: Any, indexed: str, flask_source: Path
) -> None:
    """Planted once: with imports left out of resolution, 14 of 65 functions had other callers."""
    expected = _callers(flask_source / "src" / "flask")

    found = {place: _found_callers(searches, indexed, place) for place in expected}

    assert len([place for place, callers in expected.items() if callers]) >= 25
    assert found == expected


def test_the_commands_tell_of_the_graph_and_of_a_hits_score(
    product: Lodestone, indexed: str, flask_source: Path
) -> None:
    path = str(flask_source / "src" / "flask")

    callers = product.run("graph", "get_debug_flag", "--callers", "--path", path, "--json")
    printed = product.run("graph", "Flask.run", "--callees", "--depth", "2", "--path", path)
    nothing = product.run("graph", "no_such_thing", "--path", path)
    hits = product.run("search", "debug flag", "--explain", "--path", path, "--json")
    shown = product.run("search", "debug flag", "--explain", "--path", path)

    assert "Flask.run" in {node["name"] for node in callers.json["nodes"]}
    assert {edge["kind"] for edge in callers.json["edges"]} == {"calls"}
    assert printed.code == 0, printed.stderr
    assert "calls get_debug_flag (helpers.py:" in printed.stdout
    assert nothing.code != 0
    assert "no class, function or method of this name" in nothing.stderr
    why = [hit["explanation"] for hit in hits.json]
    assert [item["rank"] for item in why] == [1, 2, 3, 4, 5]
    assert all({"dense", "lexical", "named"} == set(item["arms"]) for item in why)
    assert "fused" in shown.stdout


def _found_callers(searches: Any, workspace: str, place: Place) -> set[Place]:
    """Returns the functions and methods from which the graph has a sure edge to a function."""
    response = searches.ExpandNodes(
        search_pb2.ExpandNodesRequest(
            parent=workspace,
            symbols=[place[1]],
            edges=[search_pb2.EDGE_KIND_CALLS],
            direction=search_pb2.EDGE_DIRECTION_IN,
            depth=1,
            page_size=1000,
        )
    )
    starts = {hit.node_id for hit in response.starts if (hit.path, hit.qualified_name) == place}
    nodes = {hit.node_id: hit for hit in [*response.starts, *response.nodes]}
    callers = [
        nodes[edge.from_node_id]
        for edge in response.edges
        if edge.to_node_id in starts and edge.resolution in _SURE
    ]
    found = {(hit.path, hit.qualified_name) for hit in callers if hit.kind in _CALLERS}
    return found - {place}  # overloads have one name


class _Module(ast.NodeVisitor):
    """What a module defines at its top, imports, and calls in which function."""

    def __init__(self, path: str, tree: ast.Module) -> None:
        self.path = path
        self.functions = {
            node.name
            for node in tree.body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        self.names: dict[str, tuple[str, str]] = {}
        """Names from imports: the module's path without its ending, and the name in it."""
        self.calls: list[tuple[str, str]] = []
        """The function around a call, and what is called, dotted."""
        self._scope: list[str] = []
        self._function = ""
        self.visit(tree)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        folder = self.path.split("/")[: -node.level] if node.level else None
        if folder is None:
            return
        module = "/".join([*folder, *(node.module or "").split(".")]).strip("/")
        for item in node.names:
            self.names[item.asname or item.name] = (module, item.name)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._inside(node, is_function=False)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._inside(node, is_function=True)

    def visit_AsyncFunctionDef(self, node: Any) -> None:
        self._inside(node, is_function=True)

    def _inside(self, node: Any, *, is_function: bool) -> None:
        outer = self._function
        self._scope.append(node.name)
        if is_function and not outer:
            self._function = ".".join(self._scope)
        for decorator in node.decorator_list:
            self._note(decorator)
        self.generic_visit(node)
        self._function = outer
        self._scope.pop()

    def visit_Call(self, node: ast.Call) -> None:
        self._note(node.func)
        self.generic_visit(node)

    def _note(self, called: ast.expr) -> None:
        if isinstance(called, ast.Name):
            self.calls.append((self._function, called.id))
        elif isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
            self.calls.append((self._function, f"{called.value.id}.{called.attr}"))


def _callers(root: Path) -> dict[Place, set[Place]]:
    """Returns the functions and methods that call each function at the top of a module."""
    modules = {}
    for file in sorted(root.rglob("*.py")):
        path = file.relative_to(root).as_posix()
        modules[path] = _Module(path, ast.parse(file.read_text("utf-8")))
    callers: dict[Place, set[Place]] = {
        (module.path, name): set() for module in modules.values() for name in module.functions
    }
    for module in modules.values():
        for function, called in module.calls:
            place = _meaning(modules, module, called)
            if place in callers and function and (module.path, function) != place:
                callers[place].add((module.path, function))
    return callers


def _meaning(modules: dict[str, _Module], module: _Module, called: str) -> Place | None:
    head, _, rest = called.partition(".")
    if not rest and head in module.functions:
        return module.path, head
    if head not in module.names:
        return None
    where, name = module.names[head]
    wanted = [(where, rest or name)] if not rest else [(f"{where}/{name}".strip("/"), rest)]
    for folder, attribute in wanted:
        for path in (f"{folder}.py", f"{folder}/__init__.py".lstrip("/")):
            other = modules.get(path)
            if other is None:
                continue
            if attribute in other.functions:
                return path, attribute
            if attribute in other.names:
                return _meaning(modules, other, attribute)
    return None
