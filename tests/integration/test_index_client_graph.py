"""The Python client's explanations and walks of the code graph, against all services."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from services.client import (
    Direction,
    EdgeKind,
    Filter,
    InvalidCallError,
    Lodestone,
    NotFoundError,
    Resolution,
)
from tests.integration.samples import write_tree

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.integration.indexing import Indexing

HANDLE = """from app import Router, parse_body


def handle(raw):
    return parse_body(raw)
"""

TEST = """from app import parse_body


def test_parse_body():
    assert parse_body("1") == 1
"""


@pytest.fixture
async def client(services: Indexing, roots: Path) -> AsyncIterator[Lodestone]:
    """A client of an indexed tree in which one function has a caller and a test."""
    write_tree(roots / "tree", web__handle_py=HANDLE, tests__test_app_py=TEST)
    await services.create("tree", "tree")
    await services.succeed("tree")
    async with Lodestone.connect(f"unix:{services.folder}/indexer") as client:
        yield client


async def test_an_explanation_tells_how_the_search_ranked_a_hit(client: Lodestone) -> None:
    """Red when an explanation leaves out the search's filter."""
    only = Filter(paths=("app.py",))
    page = await client.search("parse a json body", only=only)
    told = [await client.explain("parse a json body", hit, only=only) for hit in page]
    unfiltered = await client.explain("test", page.hits[0])

    assert [each.rank for each in told] == list(range(1, len(page) + 1))
    assert [each.hit.score for each in told] == [hit.score for hit in page]
    first = told[0]
    assert {arm.arm for arm in first.arms} == {"dense", "lexical", "named"}
    product = first.fused_score
    for factor in first.priors.values():
        product *= factor
    assert product == pytest.approx(first.hit.score)
    assert (len(first.model_fingerprint), first.age_seconds >= 0) == (32, True)
    assert unfiltered.rank > 1


async def test_a_hit_is_expanded_to_its_callers_tests_and_class(client: Lodestone) -> None:
    """Red when edges are taken the wrong way, or when starts are counted among what was found."""
    parse = (await client.search("parse_body", only=Filter(symbols=("parse_body",)))).hits[0]

    around = await client.expand([parse])
    callers = await client.expand([parse], edges=[EdgeKind.CALLS], direction=Direction.IN)
    member = await client.expand(symbols=["Router.add_route"], edges=[EdgeKind.CONTAINS])

    assert [hit.node_id for hit in around.starts] == [parse.node_id]
    called_by = {hit.name for hit in around.reached(EdgeKind.CALLS, Direction.IN)}
    assert called_by == {"handle"}
    assert {hit.name for hit in callers.nodes} == {"handle", "test_parse_body"}
    tests = around.reached(EdgeKind.TESTS, Direction.IN)
    assert [(hit.path, hit.name) for hit in tests] == [("tests/test_app.py", "test_parse_body")]
    assert around.reached(EdgeKind.CALLS, Direction.OUT) == ()
    handle = await client.expand(around.reached(EdgeKind.CALLS, Direction.IN))
    assert [hit.name for hit in handle.reached(EdgeKind.CALLS, Direction.OUT)] == ["parse_body"]
    assert handle.reached(EdgeKind.CALLS, Direction.IN) == ()
    edge = next(each for each in callers.edges if each.line == 5)
    assert (edge.target, edge.kind) == (parse.node_id, EdgeKind.CALLS)
    assert edge.resolution is Resolution.IMPORTED
    enclosing = member.reached(EdgeKind.CONTAINS, Direction.IN)
    assert [hit.name for hit in enclosing] == ["Router"]


async def test_pages_of_a_walk_give_all_that_one_call_gives(client: Lodestone) -> None:
    whole = await client.expand(symbols=["parse_body"], depth=2)
    page = await client.expand(symbols=["parse_body"], depth=2, limit=1)
    names = [hit.node_id for hit in page.nodes]
    while page.next_page_token:
        page = await client.expand(
            symbols=["parse_body"], depth=2, limit=1, page_token=page.next_page_token
        )
        names += [hit.node_id for hit in page.nodes]

    assert len(names) > 2
    assert names == [hit.node_id for hit in whole.nodes]


async def test_what_cannot_be_explained_or_expanded_says_why(client: Lodestone) -> None:
    hit = (await client.search("parse_body")).hits[0]

    with pytest.raises(NotFoundError):
        await client.explain("parse_body", 1 << 40)
    with pytest.raises(InvalidCallError, match="several workspaces"):
        await client.expand([hit, replace(hit, workspace="workspaces/other")])
    with pytest.raises(InvalidCallError) as nothing:
        await client.expand()
    with pytest.raises(InvalidCallError, match="unknown kind"):
        await client.expand([hit], edges=[EdgeKind.UNKNOWN])

    assert nothing.value.reason == "INVALID_REQUEST"
