"""The code graph: what names mean over the files of a workspace, and walks along it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import asyncpg
import grpc
import pytest

from lodestone.indexer.v1 import search_service_pb2 as search_pb2
from tests.integration.oracle import broken_rules, check
from tests.integration.samples import edit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from tests.integration.indexing import Indexing

TREE = {
    "shop/__init__.py": "from .cart import Cart as Cart\nfrom . import prices\n",
    "shop/base.py": (
        "class Store:\n    def save(self):\n        return self.flush()\n\n"
        "    def flush(self):\n        pass\n"
    ),
    "shop/cart.py": (
        "import json\n\nfrom .base import Store\nfrom .prices import price_of as cost\n\n\n"
        "class Cart(Store):\n    def add(self, item):\n        self.items.append(item)\n"
        "        self.total = cost(item)\n        self.save()\n\n"
        "    def dump(self):\n        return json.dumps(self.items)\n"
    ),
    "shop/prices.py": (
        "def price_of(item):\n    return round_up(item.cents)\n\n\n"
        "def round_up(cents):\n    return price_of(cents) if cents > 9 else cents\n"
    ),
    "shop/json/__init__.py": "def dumps(value):\n    return value\n",
    "tests/test_cart.py": (
        "import shop\nfrom shop import Cart\nfrom shop.prices import price_of\n\n\n"
        "def test_add():\n    cart = Cart()\n    cart.add(1)\n    assert shop.prices.round_up(2)\n"
        "    assert price_of(3)\n"
    ),
    "web/cart.js": (
        "import { total as sum } from './sum';\nexport function show() { return sum(1) }\n"
    ),
    "web/sum/index.js": "export function total(x) { return x }\n",
    "queue/queue.go": "package queue\n\nfunc Push(x int) { grow(x) }\n",
    "queue/grow.go": "package queue\n\nfunc grow(x int) {}\n",
    "cmd/main.go": (
        'package main\n\nimport q "ex.com/shop/queue"\n\nfunc main() { q.Push(1) }\n'
    ),
    "java/a/Base.java": "package a;\nclass Base { void run() { } }\n",
    "java/a/Job.java": (
        "package a;\nclass Job extends Base { void start() { run(); Helper.help(); } }\n"
    ),
    "java/b/Helper.java": "package b;\nclass Helper { static void help() { } }\n",
}  # fmt: skip
OUT, IN = search_pb2.EDGE_DIRECTION_OUT, search_pb2.EDGE_DIRECTION_IN
CALLS, TESTS = search_pb2.EDGE_KIND_CALLS, search_pb2.EDGE_KIND_TESTS
CONTAINS, INHERITS = search_pb2.EDGE_KIND_CONTAINS, search_pb2.EDGE_KIND_INHERITS
IMPORTS = search_pb2.EDGE_KIND_IMPORTS


def _write(folder: Path, more: Mapping[str, str] | None = None) -> Path:
    for name, text in {**TREE, **(more or {})}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
async def graph(services: Indexing, roots: Path) -> AsyncIterator[Indexing]:
    """The services over an indexed tree of several languages."""
    _write(roots / "tree")
    await services.create("tree", "tree")
    await services.succeed("tree")
    yield services
    assert await broken_rules(services.url) == []


async def _expand(services: Indexing, *symbols: str, **fields: Any) -> Any:
    request = search_pb2.ExpandNodesRequest(
        parent="workspaces/tree", symbols=symbols, **{"depth": 1, **fields}
    )
    return await services.searches.ExpandNodes(request)


def _edges(response: Any) -> set[str]:
    """Returns edges in lines such as `a.py:f calls b.py:g`."""
    names = {
        hit.node_id: f"{hit.path}:{hit.qualified_name}"
        for hit in [*response.starts, *response.nodes]
    }
    return {
        f"{names[edge.from_node_id]} {search_pb2.EdgeKind.Name(edge.kind)[10:].lower()} "
        f"{names[edge.to_node_id]}"
        for edge in response.edges
    }


ONE_EDGE: list[tuple[str, dict[str, Any], set[str]]] = [
    ("Cart.add", {"direction": OUT, "edges": [CALLS]}, {
            "shop/cart.py:Cart.add calls shop/prices.py:price_of",
            "shop/cart.py:Cart.add calls shop/base.py:Store.save"}),
    ("price_of", {"direction": IN, "edges": [CALLS]}, {
            "shop/cart.py:Cart.add calls shop/prices.py:price_of",
            "shop/prices.py:round_up calls shop/prices.py:price_of",
            "tests/test_cart.py:test_add calls shop/prices.py:price_of"}),
    ("price_of", {"direction": IN, "edges": [TESTS]}, {
            "tests/test_cart.py:test_add tests shop/prices.py:price_of"}),
    ("round_up", {"direction": IN, "edges": [TESTS]}, {
            "tests/test_cart.py:test_add tests shop/prices.py:round_up"}),
    ("Cart", {"direction": IN, "edges": [TESTS]}, {
            "tests/test_cart.py:test_add tests shop/cart.py:Cart"}),
    ("Cart::dump()", {"direction": IN, "edges": [CONTAINS]}, {
            "shop/cart.py:Cart contains shop/cart.py:Cart.dump"}),
    ("Cart.dump", {"direction": OUT, "edges": [CALLS]}, set()),
    ("Cart", {"direction": OUT, "edges": [INHERITS]}, {
            "shop/cart.py:Cart inherits shop/base.py:Store"}),
    ("Store", {"direction": IN, "edges": [INHERITS]}, {
            "shop/cart.py:Cart inherits shop/base.py:Store"}),
    ("Store", {"direction": OUT, "edges": [CONTAINS]}, {
            "shop/base.py:Store contains shop/base.py:Store.save",
            "shop/base.py:Store contains shop/base.py:Store.flush"}),
    ("Cart.dump", {"direction": IN, "edges": [CONTAINS]}, {
            "shop/cart.py:Cart contains shop/cart.py:Cart.dump"}),
    ("Cart", {"direction": IN, "edges": [IMPORTS]}, {
            "shop/__init__.py: imports shop/cart.py:Cart",
            "tests/test_cart.py: imports shop/cart.py:Cart"}),
    ("show", {"direction": OUT, "edges": [CALLS]}, {
            "web/cart.js:show calls web/sum/index.js:total"}),
    ("total", {"direction": IN, "edges": [CALLS]}, {
            "web/cart.js:show calls web/sum/index.js:total"}),
    ("Push", {"direction": OUT, "edges": [CALLS]}, {
            "queue/queue.go:Push calls queue/grow.go:grow"}),
    ("main", {"direction": OUT, "edges": [CALLS]}, {
            "cmd/main.go:main calls queue/queue.go:Push"}),
    ("Job.start", {"direction": OUT, "edges": [CALLS]}, {
            "java/a/Job.java:Job.start calls java/a/Base.java:Base.run",
            "java/a/Job.java:Job.start calls java/b/Helper.java:Helper.help"}),
]  # fmt: skip


async def test_what_lies_one_edge_away(graph: Indexing) -> None:
    """`json.dumps` is Python's own, though the workspace holds a `dumps` in a folder `json`."""
    for symbol, fields, expected in ONE_EDGE:
        assert _edges(await _expand(graph, symbol, **fields)) == expected, symbol


async def test_what_imports_a_module_is_found_from_it(services: Indexing, roots: Path) -> None:
    """A module is named by what is imported of its package too, and a package by its folder."""
    files = {
        "tools.py": "import json\nfrom shop import prices as p\nimport shop.base\n\nX = p\n",
        "cmd/list.go": 'package main\n\nimport "ex.com/shop/rows"\n\nfunc l() { rows.All() }\n',
        "rows/all.go": "package rows\n\nfunc All() {}\n",
        "lib/part.h": "struct part { int number; };\n\nint part_of(int x);\n",
        "lib/whole.c": '#include "part.h"\n\nint whole(int x) { return part_of(x); }\n',
        "web/app.js": "import * as cart from './cart.js';\n\ncart.show();\n",
    }
    _write(roots / "tree", files)
    await services.create("tree", "tree")
    await services.succeed("tree")
    nodes = [hit.node_id for hit in await services.search("tree", "shop", k=1000)]

    there, back = [
        await services.searches.ExpandNodes(
            search_pb2.ExpandNodesRequest(
                parent="workspaces/tree",
                node_ids=nodes,
                edges=[IMPORTS],
                direction=direction,
                depth=1,
            )
        )
        for direction in (OUT, IN)
    ]

    assert _edges(back) == _edges(there)
    assert _edges(there) >= {
        "tools.py: imports shop/prices.py:price_of",
        "tools.py: imports shop/base.py:Store",
        "cmd/list.go: imports rows/all.go:",
        "lib/whole.c: imports lib/part.h:part",
        "web/app.js: imports web/cart.js:",
    }


RUST = {
    "src/lib.rs": (
        "mod net;\nmod store;\npub mod error;\npub use error::Error;\n\npub struct Config;\n"
        "impl Config {\n    pub fn load() { net::connect(); self::local(); store::open(); }\n}\n"
        "fn local() {}\npub fn shared() {}\n"
    ),
    "src/error.rs": "pub struct Error;\nimpl Error { pub fn new() {} }\npub fn wrap() {}\n",
    "src/net/mod.rs": (
        "pub mod tcp;\nuse crate::{shared, Config, Error};\n\npub fn connect() {\n"
        "    tcp::dial();\n    self::tcp::again();\n    Config::load();\n    shared();\n"
        "    Error::new();\n    super::local();\n    crate::error::wrap();\n}\n"
    ),
    "src/net/tcp.rs": (
        "pub fn dial() { super::connect(); crate::shared(); std::mem::open(); }\n"
        "pub fn again() { super::super::shared(); }\n"
        "#[cfg(test)]\nmod tests {\n    #[test]\n    fn t() { super::dial(); }\n}\n"
    ),
    "src/store/mod.rs": "mod disk;\npub use self::disk::Disk;\npub fn open() { Disk::mount(); }\n",
    "src/store/disk.rs": (
        "pub struct Disk;\nimpl Disk {\n    pub fn mount() { Self::open(); super::open(); }\n"
        "    fn open() {}\n}\n"
    ),
}  # fmt: skip


async def test_a_path_of_rust_is_looked_up_in_its_modules(services: Indexing, roots: Path) -> None:
    for name, text in RUST.items():
        (roots / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (roots / "tree" / name).write_text(text)
    await services.create("tree", "tree")
    await services.succeed("tree")

    found = await _expand(
        services, *("load", "connect", "dial", "again", "t", "open", "mount"),
        direction=OUT, edges=[CALLS],
    )  # fmt: skip

    assert _edges(found) == {
        "src/lib.rs:Config.load calls src/net/mod.rs:connect",
        "src/lib.rs:Config.load calls src/lib.rs:local",
        "src/lib.rs:Config.load calls src/store/mod.rs:open",
        "src/net/mod.rs:connect calls src/net/tcp.rs:dial",
        "src/net/mod.rs:connect calls src/net/tcp.rs:again",
        "src/net/mod.rs:connect calls src/lib.rs:Config.load",
        "src/net/mod.rs:connect calls src/lib.rs:shared",
        "src/net/mod.rs:connect calls src/error.rs:Error.new",
        "src/net/mod.rs:connect calls src/lib.rs:local",
        "src/net/mod.rs:connect calls src/error.rs:wrap",
        "src/net/tcp.rs:dial calls src/net/mod.rs:connect",
        "src/net/tcp.rs:dial calls src/lib.rs:shared",
        "src/net/tcp.rs:again calls src/lib.rs:shared",
        "src/net/tcp.rs:tests.t calls src/net/tcp.rs:dial",
        "src/store/mod.rs:open calls src/store/disk.rs:Disk.mount",
        "src/store/disk.rs:Disk.mount calls src/store/disk.rs:Disk.open",
        "src/store/disk.rs:Disk.mount calls src/store/mod.rs:open",
    }


async def test_walks_go_on_to_their_depth_through_cycles(graph: Indexing) -> None:
    near = await _expand(graph, "Cart.add", direction=OUT, edges=[CALLS])
    far = await _expand(graph, "Cart.add", direction=OUT, edges=[CALLS], depth=5)

    assert {hit.qualified_name for hit in near.nodes} == {"Store.save", "price_of"}
    assert [(hit.qualified_name, round(1 / hit.score)) for hit in far.nodes] == [
        ("Store.save", 1), ("price_of", 1), ("Store.flush", 2), ("round_up", 2),
    ]  # fmt: skip
    assert "shop/prices.py:round_up calls shop/prices.py:price_of" in _edges(far)
    assert not far.truncated


async def test_all_edges_around_a_node_come_when_none_is_named(graph: Indexing) -> None:
    around = await _expand(graph, "Cart")

    assert {edge.split(" ")[1] for edge in _edges(around)} == {
        "contains", "imports", "inherits", "tests",
    }  # fmt: skip


async def test_pages_of_a_walk_hold_each_node_once_and_all_edges(
    graph: Indexing, roots: Path
) -> None:
    """The walk's order is in the token: files written between the pages change nothing."""
    whole = await _expand(graph, "Cart", depth=5, page_size=1000)
    assert len(whole.nodes) > 10
    pages = [await _expand(graph, "Cart", depth=5, page_size=3)]
    edit(roots / "tree" / "shop" / "base.py", "class Store", "# first\n\n\nclass Store")
    (roots / "tree" / "shop" / "aaa.py").write_text("from .cart import Cart\n\n\nC = Cart()\n")
    await graph.succeed("tree")
    while pages[-1].next_page_token:
        token = pages[-1].next_page_token
        pages.append(await _expand(graph, "Cart", depth=5, page_size=3, page_token=token))

    assert [hit.node_id for page in pages for hit in page.nodes] == [
        hit.node_id for hit in whole.nodes
    ]
    assert {edge.SerializeToString() for page in pages for edge in page.edges} == {
        edge.SerializeToString() for edge in whole.edges
    }
    assert sum(len(page.edges) for page in pages) == len(whole.edges)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"node_ids": [999_999]}, "NOT_FOUND"),
        ({"symbols": ["no_such_name"]}, "NOT_FOUND"),
        ({"symbols": ["Cart"], "depth": 0}, "INVALID_ARGUMENT"),
        ({"symbols": ["Cart"], "depth": 6}, "INVALID_ARGUMENT"),
        ({"symbols": []}, "INVALID_ARGUMENT"),
        ({"node_ids": [0]}, "INVALID_ARGUMENT"),
        ({"symbols": ["Cart"], "page_token": "bm9uc2Vuc2U="}, "INVALID_ARGUMENT"),
        ({"symbols": ["Cart"], "parent": "workspaces/none"}, "NOT_FOUND"),
    ],
)
async def test_wrong_walks_are_refused(services: Indexing, fields: Any, code: str) -> None:
    await services.create("tree", ".")
    request = search_pb2.ExpandNodesRequest(**{"parent": "workspaces/tree", "depth": 1, **fields})

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await services.searches.ExpandNodes(request)

    assert caught.value.code().name == code


async def test_a_token_of_another_walk_is_refused(graph: Indexing) -> None:
    first = await _expand(graph, "Cart", depth=5, page_size=1)

    with pytest.raises(grpc.aio.AioRpcError, match="another request"):
        await _expand(graph, "Cart", depth=4, page_token=first.next_page_token)
    with pytest.raises(grpc.aio.AioRpcError, match="another request"):
        await graph.searches.SearchNodes(
            search_pb2.SearchNodesRequest(
                parent="workspaces/tree", query="x", page_token=first.next_page_token
            )
        )


async def test_a_node_of_another_workspace_is_not_found(graph: Indexing, roots: Path) -> None:
    _write(roots / "other")
    await graph.create("other", "other")
    await graph.succeed("other")
    start = (await _expand(graph, "Cart")).starts[0]

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await graph.searches.ExpandNodes(
            search_pb2.ExpandNodesRequest(
                parent="workspaces/other", node_ids=[start.node_id], depth=1
            )
        )

    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert {hit.workspace for hit in (await _expand(graph, "Cart", depth=5)).nodes} == {
        "workspaces/tree"
    }


async def test_hits_come_with_what_is_around_them_in_one_call(graph: Indexing) -> None:
    response = await graph.searches.SearchNodes(
        search_pb2.SearchNodesRequest(
            parent="workspaces/tree",
            query="price_of",
            page_size=1,
            expand=search_pb2.ExpandSpec(edges=[CALLS, TESTS], direction=IN, depth=2, max_nodes=2),
        )
    )

    assert [hit.qualified_name for hit in response.hits] == ["price_of"]
    assert [hit.qualified_name for hit in response.expanded] == ["Cart.add", "round_up"]
    ends = {hit.node_id for hit in [*response.hits, *response.expanded]}
    assert response.edges
    assert all({edge.from_node_id, edge.to_node_id} <= ends for edge in response.edges)
    assert response.expansion_truncated


async def test_hits_of_several_workspaces_are_expanded_verified_and_paged_each_in_its_own(
    graph: Indexing, roots: Path
) -> None:
    """The same code twice: what lies around a hit is of its own workspace, on any page.

    Red when the second page, verifying or the walk takes the first workspace for all; and when the
    answer says nothing of an expansion that was cut in the first of two.
    """
    _write(roots / "other")
    (roots / "other" / "tests/test_cart.py").unlink()
    await graph.create("other", "other")
    await graph.succeed("other")
    edit(roots / "other" / "shop/prices.py", "def price_of", "# above\ndef price_of")
    callers = {
        "workspaces/tree": {"Cart.add", "round_up", "test_add"},
        "workspaces/other": {"Cart.add", "round_up"},
    }
    request = search_pb2.SearchNodesRequest(
        parent="workspaces/tree",
        other_parents=["workspaces/other"],
        query="price_of",
        page_size=1000,
        verify=True,
        with_text=True,
    )
    whole = await graph.searches.SearchNodes(request)
    request.expand.MergeFrom(search_pb2.ExpandSpec(edges=[CALLS], direction=IN, depth=1))
    pages: list[Any] = []
    while not pages or request.page_token:
        request.page_size = 1
        pages.append(await graph.searches.SearchNodes(request))
        request.page_token = pages[-1].next_page_token
    request.page_size, request.expand.max_nodes = 2, 2
    cut = await graph.searches.SearchNodes(request)

    assert [hit for page in pages for hit in page.hits] == list(whole.hits)
    firsts = {page.hits[0].workspace: page for page in pages[1::-1]}
    assert firsts.keys() == callers.keys() == {hit.workspace for hit in cut.hits}
    for workspace, page in firsts.items():
        (hit,) = page.hits
        is_moved = workspace == "workspaces/other"
        assert hit.freshness == (hit.FRESHNESS_MOVED if is_moved else hit.FRESHNESS_FRESH)
        assert (hit.start_line, hit.text[:12]) == (2 if is_moved else 1, "def price_of")
        assert {near.workspace for near in page.expanded} == {workspace}
        assert {near.qualified_name for near in page.expanded} == callers[workspace]
        assert not page.expansion_truncated
    assert cut.expansion_truncated
    assert [near.workspace for near in cut.expanded] == [
        *["workspaces/tree"] * 2,
        *["workspaces/other"] * 2,
    ]


async def test_an_edit_moves_edges_and_rewrites_no_row_of_other_files(
    graph: Indexing, roots: Path
) -> None:
    connection = await asyncpg.connect(graph.url)
    before = await _versions(connection)
    edit(roots / "tree" / "shop" / "prices.py", "def price_of(item)", "def price_of(item, tax=0)")
    edit(roots / "tree" / "shop" / "cart.py", "        self.save()\n", "")

    progress = await graph.succeed("tree")

    after = await _versions(connection)
    await connection.close()
    assert progress.forwards == 2
    edges = _edges(await _expand(graph, "Cart.add", direction=OUT, edges=[CALLS]))
    assert edges == {"shop/cart.py:Cart.add calls shop/prices.py:price_of"}
    changed = {"shop/cart.py", "shop/prices.py"}
    assert {path for path, rows in before.items() if after[path] != rows} == changed
    await check(graph, "tree", "tree")


async def test_an_index_of_an_older_parser_gets_its_references_without_a_forward(
    graph: Indexing,
) -> None:
    """Files that did not change are parsed again for the parser's version alone."""
    connection = await asyncpg.connect(graph.url)
    await connection.execute("UPDATE files SET recipe = '2/64'; DELETE FROM node_references")
    assert not (await _expand(graph, "Cart", edges=[INHERITS])).nodes

    progress = await graph.succeed("tree")

    await connection.close()
    assert progress.forwards == 0
    assert progress.files_parsed == len(TREE)
    assert (await _expand(graph, "Cart", edges=[INHERITS])).nodes
    await check(graph, "tree", "tree")


async def test_names_of_many_meanings_are_few_and_marked(services: Indexing, roots: Path) -> None:
    folder = roots / "tree"
    folder.mkdir()
    for number in range(30):
        (folder / f"part{number:02}.py").write_text(
            f"class Part{number}:\n    def turn(self):\n        return {number}\n"
        )
    (folder / "use.py").write_text("def use(part):\n    part.turn()\n    use(part)\n")
    await services.create("tree", "tree")
    await services.succeed("tree")

    found = await _expand(services, "use", direction=OUT, edges=[CALLS])

    assert {edge.resolution for edge in found.edges} == {search_pb2.EDGE_RESOLUTION_AMBIGUOUS}
    assert [hit.path for hit in found.nodes] == [f"part{number:02}.py" for number in range(5)]


async def _versions(connection: asyncpg.Connection) -> dict[str, list[tuple[Any, ...]]]:
    """Returns the physical rows of references and nodes by path: a new version shows."""
    rows = await connection.fetch(
        """
        SELECT f.path, r.node_id, r.ordinal, r.xmin::text, n.xmin::text AS node
        FROM node_references r
        JOIN nodes n ON n.workspace_id = r.workspace_id AND n.id = r.node_id
        JOIN files f ON f.workspace_id = r.workspace_id AND f.id = r.file_id ORDER BY 1, 2, 3
        """
    )
    found: dict[str, list[tuple[Any, ...]]] = {}
    for row in rows:
        found.setdefault(row["path"], []).append(tuple(row))
    return found
