"""Search finds what brute force finds, and nothing of another tenant or of what is gone."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING

import asyncpg
import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lodestone.indexer.v1 import search_service_pb2 as search_pb2
from services.indexer import search_servicer
from services.indexer.model import ModelId, WorkspaceId
from services.indexer.search.globs import is_open
from services.indexer.search.model import SearchFilter
from services.indexer.search.terms import name_terms, query_terms
from services.indexer.storage.database import Database
from services.indexer.storage.search import SearchStore
from tests.integration.indexing import indexing
from tests.integration.oracle import broken_rules
from tests.integration.samples import write_many, write_tree

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from tests.integration.hooks import Hook
    from tests.integration.indexing import Indexing

_WORKSPACE, _MODEL = WorkspaceId(1), ModelId(1)
_ALL = SearchFilter()
_SENDABLE = st.characters(exclude_categories=["Cs"])
"""Protobuf holds no lone surrogates."""


@pytest.fixture
async def store(services: Indexing, roots: Path) -> AsyncIterator[SearchStore]:
    """A store over two indexed trees, of which the first is searched."""
    write_tree(roots / "tree", notes_py="parse_body = 1\n")
    write_many(roots / "tree" / "many", 40, per_file=8)
    write_tree(roots / "other")
    for name in ("tree", "other"):
        await services.create(name, name)
        await services.succeed(name)
    database = Database(services.url, connections=2, timeout_seconds=30)
    await database.open()
    yield SearchStore(database)
    await database.close()
    assert await broken_rules(services.url) == []


async def test_the_vector_arm_gives_what_numpy_gives(
    services: Indexing, store: SearchStore
) -> None:
    connection = await asyncpg.connect(services.url)
    rows = await connection.fetch(
        "SELECT node_id, embedding::text FROM node_vectors_m1 WHERE workspace_id = 1"
    )
    await connection.close()
    ids = [row[0] for row in rows]
    matrix = np.array([np.fromstring(row[1][1:-1], sep=",") for row in rows])
    query = matrix[7].astype("<f2")

    found = await store.dense(_WORKSPACE, _MODEL, query.tobytes(), _ALL, 15)

    products = matrix @ query.astype(float)
    best = sorted(zip(-products, ids, strict=True))[:15]
    assert [item.score for item in found] == pytest.approx([-score for score, _ in best], abs=1e-3)
    least = -best[-1][0]
    certain = {node for score, node in best if -score > least + 1e-3}
    assert certain <= {item.node_id for item in found}


@pytest.mark.parametrize(
    "query", ["parse_body", "json message", "total value", "open database url", "work_17", "route"]
)
async def test_the_lexical_arm_gives_what_plain_python_gives(
    services: Indexing, store: SearchStore, query: str
) -> None:
    expected = await _bm25(services.url, query_terms(query))

    found = await store.lexical(_WORKSPACE, query_terms(query), _ALL, 1000)

    scores = {int(item.node_id): item.score for item in found}
    assert scores
    assert scores == pytest.approx({node: expected[node] for node in scores})
    assert [item.score for item in found] == sorted(scores.values(), reverse=True)
    missed = {node: score for node, score in expected.items() if node not in scores}
    assert not missed or max(missed.values()) <= max(scores.values())


@pytest.mark.parametrize(
    ("only", "paths"),
    [
        ({"paths": ["db/**"]}, {"db/store.py"}),
        ({"paths": ["*.js"]}, {"web/price.js"}),
        ({"paths": ["many/"]}, {f"many/part_{i:06}.py" for i in range(0, 40, 8)}),
        ({"languages": ["javascript"]}, {"web/price.js"}),
        ({"kinds": ["class"]}, {"app.py"}),
        ({"symbols": ["parse_body"]}, {"app.py"}),
        ({"symbols": ["Router::add_route", "Router#find_handler()"]}, {"app.py"}),
        ({"symbols": ["parse_body"], "languages": ["javascript"]}, set()),
        ({"paths": ["man"]}, set()),
        ({"paths": ["d"]}, set()),
    ],
)
async def test_filters_are_exact(
    services: Indexing, store: SearchStore, only: dict[str, list[str]], paths: set[str]
) -> None:
    hits = await services.search("tree", "json total value price database", k=500, **only)

    assert {hit.path for hit in hits} == paths


async def test_an_unknown_kind_is_refused(services: Indexing, store: SearchStore) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="kind") as caught:
        await services.search("tree", "x", kinds=["gizmo"])

    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_hit_shows_the_bytes_of_the_file(
    services: Indexing, store: SearchStore, roots: Path
) -> None:
    hits = await services.search("tree", "parse_body")

    assert hits[0].qualified_name == "parse_body"
    for hit in hits:
        content = (roots / "tree" / hit.path).read_bytes()
        assert hit.text == content[hit.start_byte : hit.end_byte].decode()
        assert hit.freshness == search_pb2.NodeHit.FRESHNESS_FRESH


async def test_a_file_that_changed_since_shows_no_bytes(
    services: Indexing, store: SearchStore, roots: Path
) -> None:
    (roots / "tree" / "app.py").write_text("# all is new\n" * 100)
    (roots / "tree" / "notes.py").unlink()

    hits = {hit.path: hit for hit in await services.search("tree", "parse_body", k=100)}

    assert hits["app.py"].text == ""
    assert hits["app.py"].freshness == search_pb2.NodeHit.FRESHNESS_CHANGED
    assert hits["notes.py"].freshness == search_pb2.NodeHit.FRESHNESS_GONE


async def test_texts_that_io_has_no_room_for_are_not_told_as_changed(
    roots: Path, sockets: Path, migrated_url: str
) -> None:
    text = f"class {{}}:\n    def run(self):\n        return '{'x' * 600_000}'\n"
    write_tree(roots / "tree", first_py=text.format("First"), second_py=text.format("Second"))
    limits = {"max_answer_bytes": 1 << 20}
    async with indexing(roots, sockets, migrated_url, io_settings=limits) as services:
        await services.create("tree", "tree")
        await services.succeed("tree")
        hits = await services.search("tree", "First Second", symbols=["First", "Second"])

    fresh, unknown = search_pb2.NodeHit.FRESHNESS_FRESH, search_pb2.NodeHit.FRESHNESS_UNSPECIFIED
    assert [(hit.freshness, len(hit.text) > 600_000) for hit in hits] == [
        (fresh, True),
        (unknown, False),
    ]


@pytest.mark.parametrize("verify", [False, True])
async def test_the_texts_of_all_workspaces_together_are_bounded(
    services: Indexing, roots: Path, monkeypatch: pytest.MonkeyPatch, *, verify: bool
) -> None:
    monkeypatch.setattr(search_servicer, "MOST_TEXT_BYTES", 1000)
    for name in ("tree", "other"):
        write_tree(roots / name, big_py=f"def big_{name}():\n    return '{'x' * 600}'\n")
        await services.create(name, name)
        await services.succeed(name)
    request = search_pb2.SearchNodesRequest(
        parent="workspaces/tree",
        other_parents=["workspaces/other"],
        query="big",
        filter=search_pb2.SearchFilter(symbols=["big_tree", "big_other"]),
        with_text=True,
        verify=verify,
    )

    found = await services.searches.SearchNodes(request)

    fresh, unknown = search_pb2.NodeHit.FRESHNESS_FRESH, search_pb2.NodeHit.FRESHNESS_UNSPECIFIED
    told = [(hit.freshness, bool(hit.text)) for hit in found.hits]
    assert told == [(fresh, True), (unknown, False)]


async def test_a_caller_whose_time_ends_is_told_who_did_not_answer(
    roots: Path, sockets: Path, migrated_url: str, hook: Hook
) -> None:
    """And gRPC makes no further try, which would have no time, and end with that alone."""
    write_tree(roots / "tree")
    async with indexing(roots, sockets, migrated_url, embed=hook.app) as services:
        await services.create("tree", "tree")
        await services.succeed("tree")
        hook.hold()
        request = search_pb2.SearchNodesRequest(parent="workspaces/tree", query="json")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await services.searches.SearchNodes(request, timeout=1.0)
        hook.go_on.set()

    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert caught.value.details() == "The embed service does not answer (deadline_exceeded)."


async def test_tenants_see_nothing_of_each_other(services: Indexing, roots: Path) -> None:
    for name in ("one", "two"):
        write_tree(roots / name, secret_py=f"def canary_{name}():\n    return 'canary{name}'\n")
        await services.create(f"tenant-{name}", name)
        await services.succeed(f"tenant-{name}")

    hits = await services.search("tenant-one", "canary_two canarytwo", k=1000)

    assert hits
    assert all("two" not in hit.text for hit in hits)
    assert {hit.workspace for hit in hits} == {"workspaces/tenant-one"}


async def test_pages_follow_each_other_and_a_foreign_token_is_refused(
    services: Indexing, store: SearchStore
) -> None:
    request = search_pb2.SearchNodesRequest(parent="workspaces/tree", query="value", page_size=5)
    whole = await services.searches.SearchNodes(
        search_pb2.SearchNodesRequest(parent="workspaces/tree", query="value", page_size=1000)
    )
    seen = []
    while True:
        page = await services.searches.SearchNodes(request)
        seen += [hit.node_id for hit in page.hits]
        if not page.next_page_token:
            break
        request.page_token = token = page.next_page_token

    assert seen == [hit.node_id for hit in whole.hits]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await services.searches.SearchNodes(
            search_pb2.SearchNodesRequest(
                parent="workspaces/tree", query="other", page_size=5, page_token=token
            )
        )
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_workspace_that_was_never_indexed_says_so(services: Indexing) -> None:
    await services.create("empty", "none")

    with pytest.raises(grpc.aio.AioRpcError, match="not been indexed") as caught:
        await services.search("empty", "x")

    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    query=st.text(_SENDABLE, min_size=1, max_size=60),
    text=st.text(_SENDABLE, max_size=30),
)
@example(query="0", text="\\")
async def test_no_text_of_a_caller_reaches_the_database_as_code(
    services: Indexing, store: SearchStore, query: str, text: str
) -> None:
    """Any text is a question or is refused as one; none is an error of the server."""
    allowed = {grpc.StatusCode.OK}
    if "\0" in text or is_open(text):
        allowed = {grpc.StatusCode.INVALID_ARGUMENT}

    assert await _code_of(services, query, text) in allowed


async def _code_of(services: Indexing, query: str, text: str) -> grpc.StatusCode:
    try:
        await services.search("tree", query, paths=[text], symbols=[text], languages=[text])
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def _bm25(url: str, terms: tuple[str, ...]) -> Mapping[int, float]:
    """Returns the score of every node that holds a term, by the formula written out."""
    connection = await asyncpg.connect(url)
    rows = await connection.fetch(
        """
        SELECT t.node_id, t.terms, t.counts, t.length, f.path, n.qualified_name FROM node_terms t
        JOIN nodes n ON n.workspace_id = t.workspace_id AND n.id = t.node_id
        JOIN files f ON f.workspace_id = n.workspace_id AND f.id = n.file_id
        WHERE t.workspace_id = 1
        """
    )
    await connection.close()
    bodies = {row[0]: dict(zip(row[1], row[2], strict=True)) for row in rows}
    names = {row[0]: set(name_terms(row[4], row[5])) for row in rows}
    lengths = {row[0]: row[3] for row in rows}
    mean = sum(lengths.values()) / len(lengths)
    scores: dict[int, float] = defaultdict(float)
    covered: dict[int, float] = defaultdict(float)
    total = 0.0
    for term in terms:
        holders = [node for node in bodies if term in bodies[node] or term in names[node]]
        if not holders:
            continue
        df = len(holders)
        weight = math.log(1 + (len(bodies) - df + 0.5) / (df + 0.5))
        total += weight
        for node in holders:
            tf = bodies[node].get(term, 0)
            norm = 1.2 * (0.25 + 0.75 * lengths[node] / mean)
            scores[node] += weight * (tf * 2.2 / (tf + norm) + 1.5 * (term in names[node]))
            covered[node] += weight
    return {node: score * (covered[node] / total) ** 0.3 for node, score in scores.items()}
