"""A walk that looks at a part of what there is says so, at each of its limits."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from services.indexer.graph.engine import GraphEngine
from services.indexer.graph.imports import MAX_FILES
from services.indexer.graph.model import (
    MAX_IMPORTS,
    MAX_MEMBERS,
    MAX_SAME_NAME,
    MAX_SAME_PLACE,
    Direction,
    EdgeKind,
    WalkSpec,
)
from services.indexer.model import NodeKind, ParsedReference, ReferenceKind
from services.indexer.storage.graph import GraphStore
from tests.integration.replicas import parsed_file, replica, workspace_with_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from services.indexer.graph.engine import Surroundings
    from services.indexer.model import ParsedFile
    from services.indexer.storage.database import Database

_OUT, _IN = Direction.OUT, Direction.IN


def _using(path: str, language: str, *references: ParsedReference) -> ParsedFile:
    """Returns a file of the function `start`, which has the references."""
    return replace(parsed_file(path, "start"), language=language, references=references)


def _call(name: str, qualifier: str = "", node: int = 0) -> ParsedReference:
    return ParsedReference(node, ReferenceKind.CALL, name, qualifier, "", 1)


def _import(module: str, name: str, alias: str = "") -> ParsedReference:
    return ParsedReference(0, ReferenceKind.IMPORT, name, module, alias, 1)


def _class(path: str, methods: int) -> ParsedFile:
    """Returns a file of a class `start`, whose first method calls `far`."""
    file = parsed_file(path, "start", *(f"m{number}" for number in range(methods)))
    whole, *parts = file.nodes
    nodes = (
        replace(whole, kind=NodeKind.CLASS),
        *(replace(node, kind=NodeKind.METHOD, parent=0) for node in parts),
    )
    return replace(file, nodes=nodes, references=(_call("far", node=1),))


def _members(count: int) -> list[ParsedFile]:
    return [_class("c.rb", count)]


def _same_name(count: int) -> list[ParsedFile]:
    named = replace(parsed_file("x/x.rb", *["x"] * count), language="ruby")
    return [named, _using("u/u.rb", "ruby", _call("x"))]


def _aliases(count: int) -> list[ParsedFile]:
    return [_using("u.py", "python", *(_import("m", "start", f"a{i}") for i in range(count)))]


def _stems(count: int) -> list[ParsedFile]:
    others = [parsed_file(f"d{number}/tools.py", "x") for number in range(count)]
    return [*others, _using("d0/u.py", "python", _import("./tools", "x"))]


def _folders(count: int) -> list[ParsedFile]:
    others = [parsed_file(f"d{number}/tools/f.go", "x") for number in range(count)]
    return [*others, _using("u.go", "go", _import("ex.com/tools", "", ""), _call("x", "tools"))]


def _package(count: int) -> list[ParsedFile]:
    others = [parsed_file(f"tools/f{number}.go", "y") for number in range(count)]
    return [*others, _using("u.go", "go", _import("ex.com/tools", "", ""), _call("x", "tools"))]


def _imports(count: int) -> list[ParsedFile]:
    imports = (_import("m", f"x{number}") for number in range(count))
    return [_using("u.py", "python", *imports, _call("x"))]


_CASES: list[tuple[int, Callable[[int], list[ParsedFile]], EdgeKind, Direction]] = [
    (MAX_MEMBERS, _members, EdgeKind.CONTAINS, _OUT),
    (MAX_SAME_NAME, _same_name, EdgeKind.CALLS, _OUT),
    (MAX_SAME_NAME, _aliases, EdgeKind.CALLS, _IN),
    (MAX_SAME_PLACE, _stems, EdgeKind.IMPORTS, _OUT),
    (MAX_SAME_PLACE, _folders, EdgeKind.CALLS, _OUT),
    (MAX_FILES, _package, EdgeKind.CALLS, _OUT),
    (MAX_IMPORTS, _imports, EdgeKind.CALLS, _OUT),
]


@pytest.mark.parametrize(
    ("most", "make", "edge", "direction"),
    _CASES,
    ids=[make.__name__.strip("_") for _, make, _, _ in _CASES],
)
async def test_a_walk_that_looks_at_a_part_says_so(
    database: Database,
    most: int,
    make: Callable[[int], list[ParsedFile]],
    edge: EdgeKind,
    direction: Direction,
) -> None:
    """Red at each limit when no more than it is fetched, or what is more is cut without a word."""
    spec = WalkSpec(edges=frozenset({edge}), direction=direction)

    whole = await _walk(database, "whole", make(most), spec)
    cut = await _walk(database, "more", make(most + 1), spec)

    assert not whole.truncated
    assert cut.truncated
    assert len(cut.distances) == len(whole.distances)


async def test_a_walk_goes_on_past_a_class_that_it_knows_a_part_of(database: Database) -> None:
    """Red when a cut that leaves nodes out ends the walk at once, as one of too many nodes does."""
    files = [_class("c.rb", MAX_MEMBERS + 1), replace(parsed_file("f.rb", "far"), language="ruby")]
    files = [replace(file, language="ruby") for file in files]
    spec = WalkSpec(frozenset({EdgeKind.CONTAINS, EdgeKind.CALLS}), _OUT, depth=2)

    found = await _walk(database, "tree", files, spec)

    assert found.truncated
    assert [*found.distances.values()] == [1] * MAX_MEMBERS + [2]


async def _walk(
    database: Database, name: str, files: Iterable[ParsedFile], spec: WalkSpec
) -> Surroundings:
    """Returns what is around `start` in a workspace of these files."""
    stores = replica(database)
    workspace, model = await workspace_with_model(stores, name)
    await stores.queue(workspace)
    run = await stores.take()
    await stores.apply(run, model, *files)
    await stores.ledger.finish(run, None)
    return await GraphEngine(GraphStore(database)).around(workspace, spec, symbols=["start"])
