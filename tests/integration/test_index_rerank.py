"""Searches whose first hits a cross-encoder reranks: the real one, and what happens without it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
import zlib
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from prometheus_client import REGISTRY

from lodestone.indexer.v1 import search_service_pb2 as search_pb2
from services.cli import search
from services.cli.indexer import Indexer
from services.cli.scope import Filters
from services.client import Lodestone, Reranking
from services.indexer.embed_client import EmbedClient
from services.runtime.exits import ExitCode
from tests.integration.indexing import indexing
from tests.integration.samples import edit, write_many, write_tree
from tests.support.tiny_models import make_model, make_reranker
from tests.unit.embed.harness import MODELS, bundled_folder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from tests.integration.indexing import Indexing

QUERY = "parse the body of a request"
TOP = 6
DONE = search_pb2.RERANKING_DONE
TIMED_OUT, UNAVAILABLE = search_pb2.RERANKING_TIMED_OUT, search_pb2.RERANKING_UNAVAILABLE
OFF = search_pb2.RERANKING_UNSPECIFIED


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-encoder with random weights, as old as its bytes say.

    What it is converted into is kept from run to run, and found by the times of its files.
    """
    folder = make_reranker(tmp_path_factory.mktemp("rerankers") / "tiny-reranker", bundled_folder())
    for path in folder.iterdir():
        os.utime(path, (zlib.crc32(path.read_bytes()),) * 2)
    return folder


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that embeds, with random weights."""
    return make_model(tmp_path_factory.mktemp("models") / "embedder", bundled_folder())


@pytest.fixture(scope="module")
def library(folder: Path) -> Callable[[str, str], float]:
    """The scores that the library gives."""
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(folder), device="cpu", local_files_only=True)
    return lambda query, text: float(model.predict([(query, text)])[0])


@contextlib.asynccontextmanager
async def _reranking(folders: tuple[Path, Path, str], **embed: Any) -> AsyncIterator[Indexing]:
    """All services over an indexed tree; the reranker decides the order of the first hits alone."""
    roots, sockets, url = folders
    write_tree(roots / "tree")
    write_many(roots / "tree" / "many", 8, per_file=2)
    async with indexing(
        roots,
        sockets,
        url,
        embed_settings=embed,
        rerank_top=TOP,
        rerank_budget_ms=2000,
        search_weights=("rerank_share=1",),
    ) as running:
        await running.create("tree", "tree")
        await running.succeed("tree")
        await _until(running, DONE)
        yield running


@pytest.fixture
def folders(roots: Path, sockets: Path, migrated_url: str) -> tuple[Path, Path, str]:
    """Where services find what they need."""
    return roots, sockets, migrated_url


@pytest.fixture
async def services(
    folders: tuple[Path, Path, str], embedder: Path, folder: Path
) -> AsyncIterator[Indexing]:
    """Services whose models torch runs in this process."""
    models = {"model": str(embedder), "reranker": str(folder)}
    async with _reranking(folders, backend="torch", isolation="none", **models) as running:
        yield running


async def _search(services: Indexing, **fields: Any) -> search_pb2.SearchNodesResponse:
    request = {"parent": "workspaces/tree", "query": QUERY, "page_size": 100, "with_text": True}
    response: search_pb2.SearchNodesResponse = await services.searches.SearchNodes(
        search_pb2.SearchNodesRequest(**{**request, **fields})
    )
    return response


async def _until(services: Indexing, reranking: search_pb2.Reranking.ValueType) -> None:
    """Searches until the reranker is as told: it is loaded behind the first model."""
    deadline = time.monotonic() + 60
    while (await _search(services)).reranking != reranking:
        assert time.monotonic() < deadline, "the reranker did not come"
        await asyncio.sleep(0.1)


async def _explain(services: Indexing, node_id: int) -> search_pb2.ExplainHitResponse:
    search = search_pb2.SearchNodesRequest(parent="workspaces/tree", query=QUERY)
    response: search_pb2.ExplainHitResponse = await services.searches.ExplainHit(
        search_pb2.ExplainHitRequest(search=search, node_id=node_id)
    )
    return response


def _ids(hits: Sequence[search_pb2.NodeHit]) -> list[int]:
    return [hit.node_id for hit in hits]


async def test_the_first_hits_stand_as_the_reranker_scores_their_texts(
    services: Indexing, library: Callable[[str, str], float]
) -> None:
    """Red when texts and hits are mixed up, or when hits below the first ones are moved."""
    plain = await _search(services, rerank=False)
    found = await _search(services)

    assert (plain.reranking, found.reranking) == (OFF, DONE)
    by_library = sorted(plain.hits[:TOP], key=lambda hit: -library(QUERY, hit.text))
    assert _ids(found.hits[:TOP]) == _ids(by_library)
    assert _ids(found.hits[:TOP]) != _ids(plain.hits[:TOP])
    assert _ids(found.hits[TOP:]) == _ids(plain.hits[TOP:])
    assert [hit.score for hit in found.hits] == [hit.score for hit in plain.hits]


async def test_pages_explanations_and_contexts_hold_to_the_reranked_order(
    services: Indexing, library: Callable[[str, str], float]
) -> None:
    """Red when a later page is reranked again, or an explanation searches without reranking."""
    plain = await _search(services, rerank=False)
    whole = await _search(services)
    page = await _search(services, page_size=4)
    paged = _ids(page.hits)
    while page.next_page_token:
        page = await _search(services, page_size=4, page_token=page.next_page_token)
        assert page.reranking == OFF
        paged += _ids(page.hits)

    async with Lodestone.connect(f"unix:{services.folder}/indexer") as client:
        first, last = whole.hits[0], whole.hits[TOP]
        told = await client.explain(QUERY, first.node_id)
        below = await client.explain(QUERY, last.node_id)
        without = await client.explain(QUERY, first.node_id, rerank=False)
        context = await client.context(QUERY, token_budget=10_000)
        found = await client.search(QUERY, limit=1)

    assert paged == _ids(whole.hits)
    assert (told.rank, told.reranking, told.hit.score) == (1, Reranking.DONE, first.score)
    assert told.rerank is not None
    before = _ids(plain.hits).index(first.node_id) + 1
    assert (told.rerank.rank, told.rerank.rank_before) == (1, before)
    assert told.rerank.score == pytest.approx(library(QUERY, first.text), abs=1e-4)
    assert (below.rank, below.rerank) == (TOP + 1, None)
    assert (without.rank, without.rerank, without.reranking) == (before, None, Reranking.NONE)
    assert context.hits[0].node_id == first.node_id
    assert context.reranking is found.reranking is Reranking.DONE


async def test_a_search_that_explains_its_hits_reranks_once(
    services: Indexing, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the command asks; red when each hit is explained by a search of its own."""
    whole = await _search(services)
    told = await _explain(services, whole.hits[0].node_id)
    calls: list[int] = []
    rerank = EmbedClient.rerank

    async def counted(self: EmbedClient, *arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return await rerank(self, *arguments, **options)

    monkeypatch.setattr(EmbedClient, "rerank", counted)
    address = f"unix:{services.folder}/indexer"
    monkeypatch.setattr(search, "connect", lambda _: (Indexer(address), ""))
    options = search.SearchOptions(
        services.folder,
        QUERY,
        Filters("tree"),
        TOP,
        "none",
        watch=False,
        as_json=True,
        explain=True,
    )

    assert await asyncio.to_thread(search.run_search, options) is ExitCode.OK

    assert len(calls) == 1
    hits = json.loads(capsys.readouterr().out)
    assert [hit["explanation"]["rank"] for hit in hits] == list(range(1, TOP + 1))
    assert hits[0]["explanation"]["rerank"]["score"] == pytest.approx(told.rerank.score)
    assert sorted(hit["explanation"]["rerank"]["rank"] for hit in hits) == list(range(1, TOP + 1))


async def test_a_hit_whose_file_changed_keeps_its_place(services: Indexing, roots: Path) -> None:
    """Red when a text that is not there any more is scored as an empty one."""
    plain = await _search(services, rerank=False)
    gone = plain.hits[0]
    edit(roots / "tree" / gone.path, "def ", "def changed_")

    found = await _search(services)
    explained = await _explain(services, gone.node_id)

    assert found.reranking == DONE
    assert not explained.HasField("rerank")


async def test_a_frozen_or_dead_reranker_costs_the_search_nothing_but_its_budget(
    folders: tuple[Path, Path, str], folder: Path, library: Callable[[str, str], float]
) -> None:
    """Red when a search fails with its reranker, waits for it longer than it may, or counts not.

    As users have it: converted, and in a process of its own.
    """
    converted = {"precision": "float32", "streams": 1, "cache_dir": MODELS}
    async with _reranking(folders, reranker=str(folder), **converted) as services:
        before = _counted()
        plain = await _search(services, rerank=False)
        told = await _search(services)
        explained = await _explain(services, told.hits[0].node_id)
        engine = _engine()
        os.kill(engine.pid, signal.SIGSTOP)
        started = time.monotonic()
        frozen = await _search(services)
        seconds = time.monotonic() - started
        grown = {name: value - before[name] for name, value in _counted().items()}
        os.kill(engine.pid, signal.SIGKILL)
        dead = await _search(services)
        await _until(services, DONE)
        again = await _search(services)

    score = library(QUERY, told.hits[0].text)
    assert explained.rerank.score == pytest.approx(score, abs=1e-4)
    assert (frozen.reranking, _ids(frozen.hits)) == (TIMED_OUT, _ids(plain.hits))
    assert grown == {"done": 2, "timed_out": 1, "unavailable": 0}
    assert 1.9 <= seconds < 6.0
    assert dead.reranking in {TIMED_OUT, UNAVAILABLE, DONE}
    assert sorted(_ids(dead.hits)) == sorted(_ids(plain.hits))
    assert _ids(again.hits) == _ids(told.hits) != _ids(plain.hits)


def _counted() -> dict[str, float]:
    name = "lodestone_indexer_reranks_total"
    outcomes = ("done", "timed_out", "unavailable")
    return {each: REGISTRY.get_sample_value(name, {"outcome": each}) or 0.0 for each in outcomes}


def _engine() -> psutil.Process:
    """Returns the process of the reranker; the hashing model has none."""
    (engine,) = (
        child
        for child in psutil.Process().children(recursive=True)
        if "services.embed.hosting.child" in " ".join(child.cmdline())
    )
    return engine


async def test_without_a_reranker_searches_answer_and_say_so(
    roots: Path, sockets: Path, migrated_url: str
) -> None:
    """Red when a search whose reranker is missing fails, or keeps silent about it."""
    write_tree(roots / "tree")
    async with indexing(roots, sockets, migrated_url, rerank_top=TOP) as services:
        await services.create("tree", "tree")
        await services.succeed("tree")
        missing = await _search(services)
        off = await _search(services, rerank=False)

    assert (missing.reranking, off.reranking) == (UNAVAILABLE, OFF)
    assert _ids(missing.hits) == _ids(off.hits)


async def test_reranking_is_off_unless_it_is_set(
    roots: Path, sockets: Path, migrated_url: str
) -> None:
    write_tree(roots / "tree")
    async with indexing(roots, sockets, migrated_url) as services:
        await services.create("tree", "tree")
        await services.succeed("tree")
        usual = await _search(services)
        asked = await _search(services, rerank=True)

    assert (usual.reranking, asked.reranking) == (OFF, UNAVAILABLE)
