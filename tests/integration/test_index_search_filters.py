"""Filters leave out what they say and nothing else, in every arm, however few rows are left."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import asyncpg
import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from lodestone.indexer.v1 import search_service_pb2 as search_pb2
from services.indexer.model import ModelId, WorkspaceId
from services.indexer.search.model import SearchFilter
from services.indexer.search.terms import query_terms
from services.indexer.storage.database import Database
from services.indexer.storage.search import SearchStore
from services.indexer.storage.term_blocks import TermBlocks
from services.indexer.storage.term_index import TermIndex
from services.runtime.globs import whole_folder
from tests.integration.samples import write_many, write_tree

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime
    from pathlib import Path

    from tests.integration.indexing import Indexing

_WORKSPACE, _MODEL = WorkspaceId(1), ModelId(1)
_QUERIES = ["json message", "total value price", "work_17 route", "parse_body"]
_GLOBS = ["*.py", "*.js", "db/", "many/**", "app.py", "nothing/", "**/part_0000*.py", "?pp.py"]
_GLOBS += [
    "/app.py",
    "/store.py",
    "store.py",
    r"we\*rd/**",
    "we*rd/",
    "/we*rd",
    r"a\\?.py",
    r"\a*.py",
]
_ODD = ["we*rd/app.py", "weird/app.py", "tools/we*rd/store.py", "a\\b.py", "a.b.py", "Makefile.py"]
_ODD += ["sub/Makefile.py", "sub.py/app.py", "tools/sub.py"]
_NAMES = ["parse_body", "work_3", "work_21", "Store", "absent"]


def _some(*choices: str) -> st.SearchStrategy[tuple[str, ...]]:
    """Up to two of some values; mostly none, so that filters do not always leave nothing."""
    return st.just(()) | st.lists(st.sampled_from(choices), max_size=2).map(tuple)


def _matches(glob: str, path: str) -> bool:
    """The contract of globs, sign by sign."""
    if "/" in glob:
        return _fits(glob.removeprefix("/") + "**" * glob.endswith("/"), path)
    return any(_fits(glob, path[at:]) for at in range(len(path)) if at == 0 or path[at - 1] == "/")


def _fits(glob: str, path: str) -> bool:
    if glob.startswith("**/"):
        return any(
            _fits(glob[3:], path[at:])
            for at in range(len(path) + 1)
            if at == 0 or path[at - 1] == "/"
        )
    if glob.startswith("**"):
        return any(_fits(glob[2:], path[at:]) for at in range(len(path) + 1))
    if glob.startswith("*"):
        return any(_fits(glob[1:], path[at:]) for at in range(len(path.partition("/")[0]) + 1))
    if glob.startswith("?"):
        return path[:1] not in {"", "/"} and _fits(glob[1:], path[1:])
    glob = glob.removeprefix("\\")
    return path[:1] == glob[:1] and (not glob or _fits(glob[1:], path[1:]))


@dataclass(frozen=True, slots=True)
class _Row:
    id: int
    kind: str
    name: str
    path: str
    language: str
    since: datetime
    terms: frozenset[str]
    vector: np.ndarray

    def passes(self, only: SearchFilter) -> bool:
        """The filter, written out."""
        return (
            (not only.kinds or self.kind in only.kinds)
            and (not only.languages or self.language in only.languages)
            and (not only.symbols or self.name in only.symbols)
            and (not only.paths or any(_matches(glob, self.path) for glob in only.paths))
            and (only.changed_since is None or self.since >= only.changed_since)
        )


@dataclass(frozen=True, slots=True)
class _Index:
    store: SearchStore
    by_blocks: SearchStore
    rows: list[_Row]


@pytest.fixture
async def index(services: Indexing, roots: Path) -> AsyncIterator[_Index]:
    """A tree that was indexed, and again after an edit."""
    write_tree(roots / "tree")
    write_many(roots / "tree" / "many", 40, per_file=8)
    for path in _ODD:
        file = roots / "tree" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("def odd_parse_body(value):\n    return value\n")
    await services.create("tree", "tree")
    await services.succeed("tree")
    (roots / "tree" / "late.py").write_text("def late_work(value):\n    return value + 1\n")
    await services.succeed("tree")
    database = Database(services.url, connections=2, timeout_seconds=30)
    await database.open()
    assert await TermIndex(database, least_nodes=1, block_nodes=16).step() == 1
    by_blocks = SearchStore(database, None, TermBlocks(database))
    yield _Index(SearchStore(database), by_blocks, await _rows(services.url))
    await database.close()


async def _rows(url: str) -> list[_Row]:
    connection = await asyncpg.connect(url)
    found = await connection.fetch(
        """
        SELECT n.id, n.kind, n.qualified_name, f.path, f.language, n.status_since,
          t.terms || t.name_terms AS terms, v.embedding::text AS vector
        FROM nodes n JOIN files f ON f.id = n.file_id JOIN node_terms t ON t.node_id = n.id
        JOIN node_vectors_m1 v ON v.node_id = n.id
        """
    )
    await connection.close()
    return [
        _Row(
            row["id"],
            row["kind"],
            row["qualified_name"],
            row["path"],
            row["language"],
            row["status_since"],
            frozenset(row["terms"]),
            np.array(row["vector"][1:-1].split(","), dtype=float),
        )
        for row in found
    ]


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    only=st.builds(
        SearchFilter,
        languages=_some("python", "javascript", "rust"),
        kinds=_some("function", "class", "method", "module"),
        paths=_some(*_GLOBS),
        symbols=_some(*_NAMES),
    ),
    is_late=st.booleans(),
    query=st.sampled_from(_QUERIES),
    k=st.integers(1, 60),
)
async def test_every_arm_finds_exactly_what_passes(
    index: _Index, only: SearchFilter, query: str, k: int, *, is_late: bool
) -> None:
    """Went red when the vectors' best rows were taken before the filter was applied to them."""
    if is_late:
        only = replace(only, changed_since=max(row.since for row in index.rows))
    passing = [row for row in index.rows if row.passes(only)]
    vector = index.rows[0].vector.astype("<f2")

    dense = await index.store.dense(_WORKSPACE, _MODEL, vector.tobytes(), only, k)
    terms = query_terms(query)
    lexical = await index.store.lexical(_WORKSPACE, terms, only, 1000)
    by_blocks = await index.by_blocks.lexical(_WORKSPACE, terms, only, 1000)
    named = await index.store.definitions(_WORKSPACE, [name.lower() for name in _NAMES], only)

    allowed = {row.id for row in passing}
    assert len(dense) == min(k, len(passing))
    products = {row.id: float(row.vector @ vector.astype(float)) for row in passing}
    best = sorted(products.values(), reverse=True)[: len(dense)]
    assert [item.score for item in dense] == pytest.approx(best, abs=1e-3)
    assert {item.node_id for item in lexical} <= allowed
    rare = {row.id for row in passing if row.terms.intersection(_rare(index, terms))}
    assert {item.node_id for item in lexical} == rare
    assert {item.node_id for item in by_blocks} == rare
    called = {row.id for row in passing if row.name.rpartition(".")[2] in _NAMES}
    assert {item.node_id for item in named} == called


def _rare(index: _Index, terms: tuple[str, ...]) -> set[str]:
    """The terms that find candidates: those of at most a fifth of the nodes, or all."""
    counts = {term: sum(term in row.terms for row in index.rows) for term in terms}
    rare = {term for term, n in counts.items() if 0 < n <= len(index.rows) * 0.2}
    return rare or {term for term, n in counts.items() if n}


@pytest.mark.parametrize("path", [*_ODD, "we*rd", "sub.py", "tools", "we?rd"])
async def test_a_path_that_is_no_pattern_takes_itself_alone(index: _Index, path: str) -> None:
    """Red when the globs of a path have no slash before them, or read its signs."""
    found = await index.store.definitions(
        _WORKSPACE, ["odd_parse_body"], SearchFilter(paths=whole_folder(path))
    )

    odd = {row.id: row.path for row in index.rows if row.name == "odd_parse_body"}
    beneath = {each for each in odd.values() if each == path or each.startswith(f"{path}/")}
    assert {odd[item.node_id] for item in found} == beneath


async def test_a_glob_that_ends_in_an_open_escape_is_refused(
    services: Indexing, index: _Index
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await services.search("tree", "x", paths=["src\\"])

    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "open escape" in (caught.value.details() or "")


@pytest.mark.parametrize(
    "globs",
    [
        ["**/" * 900 + "app.py"],
        ["**/**" * 450 + "app.py"],
        [f"{number}" * 20 + "**" for number in range(99)] + ["app.py"],
    ],
    ids=["folders", "anything", "many"],
)
async def test_globs_that_are_hard_to_read_are_read(
    services: Indexing, index: _Index, globs: list[str]
) -> None:
    """The first two took minutes of the database, and many were read anew for each row."""
    found = await services.search("tree", "parse_body", paths=globs)

    assert {hit.path for hit in found} >= {"app.py"}
    assert {hit.path.rpartition("/")[2] for hit in found} == {"app.py"}


@pytest.mark.parametrize(
    ("globs", "why"),
    [
        (["*a" * 2001], "more than 2,000"),
        ([f"{number}".ljust(4000, "a") for number in range(100)], "too long together"),
    ],
)
async def test_globs_that_are_too_much_are_refused(
    services: Indexing, index: _Index, globs: list[str], why: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match=why) as caught:
        await services.search("tree", "x", paths=globs)

    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_only_what_a_run_changed_is_found(services: Indexing, index: _Index) -> None:
    run = await services.begin("tree")
    await services.wait(run)
    newest = await services.search("tree", "late work", changed_since_index_run=run.name)
    (services.roots / "tree" / "late.py").write_text("def later_work(value):\n    return value\n")
    second = await services.begin("tree")
    await services.wait(second)

    found = await services.search("tree", "late work", changed_since_index_run=second.name)

    assert newest == []
    assert [hit.path for hit in found] == ["late.py"]

    (old, *_) = await services.search("tree", "parse_body")
    search = search_pb2.SearchNodesRequest(
        parent="workspaces/tree",
        query="late work",
        filter=search_pb2.SearchFilter(changed_since_index_run=second.name),
    )
    context = await services.searches.BuildContext(
        search_pb2.BuildContextRequest(search=search, token_budget=4000)
    )
    explained = [
        await services.searches.ExplainHit(
            search_pb2.ExplainHitRequest(search=search, node_id=node_id)
        )
        for node_id in (found[0].node_id, old.node_id)
    ]
    assert {hit.path for hit in context.hits} == {"late.py"}
    assert [item.rank for item in explained] == [1, 0]


async def test_a_run_that_is_none_of_the_workspace_is_refused(
    services: Indexing, index: _Index
) -> None:
    unknown = "workspaces/tree/indexRuns/00000000-0000-4000-8000-000000000000"
    for name, code in {
        unknown: grpc.StatusCode.NOT_FOUND,
        unknown.replace("tree", "other"): grpc.StatusCode.INVALID_ARGUMENT,
        "last": grpc.StatusCode.INVALID_ARGUMENT,
    }.items():
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await services.search("tree", "x", changed_since_index_run=name)
        assert caught.value.code() == code


async def test_several_workspaces_are_searched_as_one(services: Indexing, index: _Index) -> None:
    other = services.roots / "other"
    other.mkdir()
    (other / "planet.py").write_text("def find_planet(name):\n    return name\n")
    await services.create("other", "other")
    await services.succeed("other")
    request = search_pb2.SearchNodesRequest(
        parent="workspaces/tree",
        other_parents=["workspaces/other", "workspaces/tree"],
        query="find_planet or parse_body",
        page_size=1000,
        with_text=True,
    )

    forwards = _embedded_questions()
    response = await services.searches.SearchNodes(request)

    assert _embedded_questions() == forwards + 1
    firsts = {hit.workspace: hit for hit in reversed(response.hits)}
    assert firsts["workspaces/other"].path == "planet.py"
    assert firsts["workspaces/tree"].path == "app.py"
    for hit in response.hits:
        folder = services.roots / hit.workspace.removeprefix("workspaces/")
        content = (folder / hit.path).read_bytes()
        assert hit.text == content[hit.start_byte : hit.end_byte].decode()
    keys = [(hit.workspace, hit.node_id) for hit in response.hits]
    assert len(keys) == len(set(keys))
    place = next(number for number, hit in enumerate(response.hits, 1) if hit.path == "planet.py")
    explained = await services.searches.ExplainHit(
        search_pb2.ExplainHitRequest(search=request, node_id=response.hits[place - 1].node_id)
    )
    assert explained.rank == place
    assert explained.hit.workspace == "workspaces/other"


async def test_words_are_weighed_over_all_workspaces_that_are_searched(
    services: Indexing, index: _Index
) -> None:
    """Red when each weighs them by itself: in a small one nothing is rare, so that it finds last.

    Both ways to score give the same, whichever workspaces are searched by which.
    """
    other = services.roots / "other"
    other.mkdir()
    (other / "planet.py").write_text("def planet(late):\n    return late\n")
    await services.create("other", "other")
    await services.succeed("other")
    terms, everything = query_terms("late planet"), SearchFilter()
    names = await _workspace_ids(services.url)

    found = {}
    for store in (index.store, index.by_blocks):
        counts = [await store.term_counts(names[name], terms) for name in ("tree", "other")]
        both = counts[0].joined(counts[1])
        assert both.nodes == counts[0].nodes + counts[1].nodes
        assert both.holders[1] == counts[1].holders[1] > counts[0].holders[1] == 0
        found[store] = [
            dict(await store.lexical(names[name], terms, everything, 50, both))
            for name in ("tree", "other")
        ]
        assert max(found[store][0].values()) < max(found[store][1].values())
    for one, same in zip(*found.values(), strict=True):
        assert one == pytest.approx(same, rel=1e-3)
    hits = await services.searches.SearchNodes(
        search_pb2.SearchNodesRequest(
            parent="workspaces/tree", other_parents=["workspaces/other"], query="late planet"
        )
    )
    assert hits.hits[0].path == "planet.py"


async def _workspace_ids(url: str) -> dict[str, WorkspaceId]:
    connection = await asyncpg.connect(url)
    rows = await connection.fetch("SELECT name, id FROM workspaces")
    await connection.close()
    return {row["name"]: WorkspaceId(row["id"]) for row in rows}


def _embedded_questions() -> float:
    found = REGISTRY.get_sample_value(
        "lodestone_indexer_search_seconds_count", {"arm": "query_embedding"}
    )
    return found or 0.0
