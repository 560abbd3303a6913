"""Explanations: of the search that they are of, and adding up to its scores."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import asyncpg
import grpc
import pytest
from blake3 import blake3

from lodestone.indexer.v1 import search_service_pb2 as search_pb2
from services.client import Filter, Lodestone
from services.indexer import search_servicer
from tests.integration.indexing import indexing
from tests.integration.samples import write_many

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.integration.indexing import Indexing


@pytest.fixture
async def narrow(roots: Path, sockets: Path, migrated_url: str) -> AsyncIterator[Indexing]:
    """Two indexed trees of more nodes than an arm of a search takes by itself."""
    async with indexing(roots, sockets, migrated_url, search_candidates=10) as running:
        for name, functions in (("tree", 60), ("other", 30)):
            write_many(roots / name, functions)
            await running.create(name, name)
            await running.succeed(name)
        yield running


async def _search(services: Indexing, query: str, **fields: Any) -> Any:
    request = search_pb2.SearchNodesRequest(
        **{"parent": "workspaces/tree", "query": query, "page_size": 100, **fields}
    )
    return await services.searches.SearchNodes(request)


async def test_a_hit_of_a_large_page_is_explained_by_a_search_as_wide(narrow: Indexing) -> None:
    """Red when an explanation searches no wider than the settings say, whatever the page took."""
    search = search_pb2.SearchNodesRequest(
        parent="workspaces/tree", query="total value", page_size=50
    )
    hits = (await narrow.searches.SearchNodes(search)).hits

    told = [
        await narrow.searches.ExplainHit(
            search_pb2.ExplainHitRequest(search=search, node_id=hit.node_id)
        )
        for hit in hits
    ]

    assert [each.rank for each in told] == list(range(1, 51))
    assert [each.hit.score for each in told] == [hit.score for hit in hits]


async def test_pages_end_with_what_the_first_one_was_wide_enough_for(narrow: Indexing) -> None:
    """What the contract says of `next_page_token`: a larger first page has more to follow."""
    counts = {}
    for size in (10, 30):
        page = await _search(narrow, "total value", page_size=size)
        found = list(page.hits)
        while page.next_page_token:
            token = page.next_page_token
            page = await _search(narrow, "total value", page_size=size, page_token=token)
            found += page.hits
        counts[size] = len({hit.node_id for hit in found})

    assert 10 <= counts[10] < counts[30] <= 60


async def test_a_token_holds_no_more_hits_than_can_be_read_again(
    narrow: Indexing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_servicer, "MOST_ROWS", 7)

    first = await _search(narrow, "total value", page_size=10)
    second = await _search(narrow, "total value", page_size=10, page_token=first.next_page_token)

    assert (len(first.hits), len(second.hits), second.next_page_token) == (10, 7, "")


async def test_a_token_is_of_all_the_workspaces_that_were_searched(narrow: Indexing) -> None:
    others = ["workspaces/other"]
    page = await _search(narrow, "total value", page_size=5, other_parents=others)

    for asked in ([], ["workspaces/third"]):
        with pytest.raises(grpc.aio.AioRpcError):
            await _search(
                narrow, "total value", page_token=page.next_page_token, other_parents=asked
            )


async def test_a_node_that_waits_for_its_vector_again_is_on_no_later_page(
    narrow: Indexing,
) -> None:
    """As after a repair or an order to embed it anew; red when its state is not looked at."""
    first = await _search(narrow, "total value", page_size=5)
    token = {"page_size": 5, "page_token": first.next_page_token}
    before = [hit.node_id for hit in (await _search(narrow, "total value", **token)).hits]
    connection = await asyncpg.connect(narrow.url)
    try:
        done = await connection.execute(
            "UPDATE nodes SET status = 'pending' WHERE id = $1", before[2]
        )
    finally:
        await connection.close()

    after = [hit.node_id for hit in (await _search(narrow, "total value", **token)).hits]

    assert done == "UPDATE 1"
    assert after == [*before[:2], *before[3:]]


async def test_arms_rank_the_nodes_of_all_workspaces_in_one_list(narrow: Indexing) -> None:
    """Red when the list of one workspace stands behind that of the other."""
    found = await _search(
        narrow, "total value", other_parents=["workspaces/other"], explain=True, page_size=90
    )

    assert {hit.workspace for hit in found.hits} == {"workspaces/tree", "workspaces/other"}
    for arm in ("dense", "lexical"):
        ranked = sorted(
            (place.rank, place.score)
            for told in found.explanations
            for place in told.arms
            if place.arm == arm and place.rank
        )
        scores = [score for _, score in ranked]
        assert [rank for rank, _ in ranked] == list(range(1, len(ranked) + 1))
        assert scores == sorted(scores, reverse=True)


async def test_the_client_explains_what_it_searched(narrow: Indexing) -> None:
    """Red when `explain` leaves out the other workspaces, the size of the page or the filter."""
    only = Filter(paths=("part_00000*.py", "part_000025.py"))
    async with Lodestone.connect(f"unix:{narrow.folder}/indexer", workspace="tree") as client:
        page = await client.search(
            "total value", other_workspaces=["other"], limit=40, only=only, with_text=False
        )

        told = [
            await client.explain(
                "total value", hit, other_workspaces=["other"], limit=40, only=only
            )
            for hit in page
        ]
        alone = await client.explain("total value", page.hits[-1], limit=40, only=only)

    assert {hit.workspace for hit in page} == {"workspaces/tree", "workspaces/other"}
    assert [each.rank for each in told] == list(range(1, 41))
    assert [each.hit for each in told] == list(page)
    assert alone.rank != 40


async def test_an_explanation_adds_up_to_the_hits_score(services: Indexing, tree: Path) -> None:
    search = search_pb2.SearchNodesRequest(
        parent="workspaces/tree", query="parse_body json", page_size=100
    )
    hits = (await services.searches.SearchNodes(search)).hits
    run = (await _search(services, "x")).index_run
    connection = await asyncpg.connect(services.url)
    fingerprint = await connection.fetchval("SELECT fingerprint FROM models")
    await connection.close()
    search.explain = True
    explained = (await services.searches.SearchNodes(search)).explanations
    assert len(explained) == len(hits)
    assert {hit.kind for hit in hits} >= {"function", "module"}
    pooling: dict[str, float] = {}

    for place, hit in enumerate(hits, start=1):
        told = await services.searches.ExplainHit(
            search_pb2.ExplainHitRequest(search=search, node_id=hit.node_id)
        )
        own = explained[place - 1]
        assert told.age.ToNanoseconds() >= own.age.ToNanoseconds() > 0
        own.age.CopyFrom(told.age)
        assert own == told
        assert told.rank == place
        assert told.hit.node_id == hit.node_id
        assert told.hit.score == pytest.approx(hit.score)
        assert hit.score == pytest.approx(told.fused_score * math.prod(told.priors.values()))
        worth = told.arms_score * told.outline_factor + told.definition
        assert told.fused_score == pytest.approx(worth * told.pooling_factor)
        assert (told.definition > 0) == (hit.qualified_name == "parse_body")
        assert 0 <= told.arms_score <= 1
        assert told.outline_factor == (1 if hit.kind in {"class", "function", "method"} else 0.9)
        if worth:
            pooling.setdefault(hit.path, told.pooling_factor)
            assert told.pooling_factor == pytest.approx(pooling[hit.path])
        assert {arm.arm for arm in told.arms} == {"dense", "lexical", "named"}
        assert any(arm.rank for arm in told.arms)
        assert told.index_run == run
        assert told.hit.file_digest == blake3((tree / hit.path).read_bytes()).digest()
        assert 0 <= told.age.ToSeconds() < 60
        assert told.model_fingerprint == fingerprint


async def test_a_page_explains_its_own_hits_and_later_ones_none(
    services: Indexing, tree: Path
) -> None:
    request: dict[str, Any] = {
        "parent": "workspaces/tree",
        "query": "parse_body json",
        "page_size": 2,
    }
    first = await services.searches.SearchNodes(
        search_pb2.SearchNodesRequest(**request, explain=True)
    )
    plain = await services.searches.SearchNodes(search_pb2.SearchNodesRequest(**request))

    assert [item.hit.node_id for item in first.explanations] == [hit.node_id for hit in first.hits]
    assert [item.rank for item in first.explanations] == [1, 2]
    assert not plain.explanations
    with pytest.raises(grpc.aio.AioRpcError, match="Later pages") as caught:
        await services.searches.SearchNodes(
            search_pb2.SearchNodesRequest(**request, explain=True, page_token=first.next_page_token)
        )
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_node_that_a_search_leaves_out_is_explained_too(
    services: Indexing, tree: Path
) -> None:
    (hit,) = (await _search(services, "price", page_size=1)).hits
    search = search_pb2.SearchNodesRequest(
        parent="workspaces/tree",
        query="price",
        filter=search_pb2.SearchFilter(paths=["nowhere/**"]),
    )

    told = await services.searches.ExplainHit(
        search_pb2.ExplainHitRequest(search=search, node_id=hit.node_id)
    )

    assert [(arm.rank, arm.score) for arm in told.arms] == [(0, 0), (0, 0), (0, 0)]
    assert told.rank == 0
    assert told.hit.score == 0
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await services.searches.ExplainHit(
            search_pb2.ExplainHitRequest(search=search, node_id=999_999)
        )
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
