"""How fast questions are answered over large workspaces, and what the index over vectors finds.

Real code with real vectors is indexed once; larger workspaces are copies of it whose vectors are
moved a little, so that no two are the same. Questions are made of names of nodes. The engine's time
is without the model's forward for the question, which is told apart; the references are the inner
product by numpy over the same vectors, and `bm25s` over the same terms.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import bm25s
import numpy as np
from pgvector.asyncpg import register_vector

from lodestone.indexer.v1 import search_service_pb2, search_service_pb2_grpc
from services.indexer.embed_client import EmbedClient
from services.indexer.io_client import IoClient
from services.indexer.model import EmbedModel
from services.indexer.search.engine import SearchEngine
from services.indexer.search.model import SearchFilter
from services.indexer.search.question import read_question
from services.indexer.search.reranking import Reranker, RerankRules
from services.indexer.search.weights import Ranking
from services.indexer.storage.database import Database
from services.indexer.storage.partitions import add_partition, vectors_table
from services.indexer.storage.search import SearchStore
from services.indexer.storage.term_blocks import TermBlocks
from services.indexer.storage.vector_index import VectorIndexes
from services.indexer.storage.workspaces import WorkspaceStore
from services.runtime.channel import connect
from tests.bench.figures import figure, print_measured, say
from tests.bench.indexer_rig import running

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from services.indexer.embed_client import Vector
    from services.indexer.model import Workspace
    from tests.bench.indexer_rig import Rig

SIZES = tuple(
    int(size) for size in os.environ.get("LODESTONE_BENCH_SEARCH_NODES", "10000,100000").split(",")
)
_TREE = Path("build/corpora/flask")
_SOURCE = "source"
_QUESTIONS = 100
_K = 10
_CANDIDATES = 300
_INDEX_NODES = 30_000
_BLOCKS_NODES = 5_000
_LEAST_RECALL = 0.98
_NOISE = 0.09
"""Width of what is added to each number of a vector: its cosine to the first is then some 0.9."""

_GOALS = {100_000: (10.0, 40.0)}
"""Milliseconds of the engine, median and 99th percentile, by nodes."""

_COPY_FILES = """
INSERT INTO files (workspace_id, path, state, digest, generation, recipe, language, line_count,
  size, mtime_ns, ctime_ns, inode, settled)
SELECT $2, 'c' || k || '/' || path, state, digest, generation, recipe, language, line_count, size,
  mtime_ns, ctime_ns, inode, settled
FROM files, generate_series(1, $3::int) k WHERE workspace_id = $1 AND state = 'indexed'
"""
_MAP_NODES = """
CREATE TEMP TABLE copies AS
SELECT n.id AS old_id, nextval('node_ids') AS new_id, c.id AS file_id
FROM generate_series(1, {copies}) k
JOIN files f ON f.workspace_id = {source} AND f.state = 'indexed'
JOIN files c ON c.workspace_id = {target} AND c.path = 'c' || k || '/' || f.path
JOIN nodes n ON n.workspace_id = {source} AND n.file_id = f.id
LIMIT {nodes}
"""
_COPY_NODES = """
INSERT INTO nodes (workspace_id, id, file_id, generation, ordinal, kind, qualified_name, start_byte,
  end_byte, start_line, end_line, part, part_count, token_estimate, content_hash, status)
SELECT {target}, c.new_id, c.file_id, generation, ordinal, kind, qualified_name, start_byte,
  end_byte, start_line, end_line, part, part_count, token_estimate, content_hash, status
FROM copies c JOIN nodes n ON n.workspace_id = {source} AND n.id = c.old_id
"""
_COPY_TERMS = """
INSERT INTO node_terms (workspace_id, node_id, fence, terms, counts, length, name_terms)
SELECT {target}, c.new_id, fence, terms, counts, length, name_terms
FROM copies c JOIN node_terms t ON t.workspace_id = {source} AND t.node_id = c.old_id
"""
_NOTE_TERMS = """
INSERT INTO term_changes (workspace_id, nodes) SELECT {target}, array_agg(new_id) FROM copies
"""
_COPY_VECTORS = """
INSERT INTO {vectors} (workspace_id, node_id, fence, content_hash, embedding)
SELECT {target}, c.new_id, fence, content_hash, l2_normalize(embedding + (
  SELECT array_agg((random() - 0.5) * {noise}) FROM generate_series(1, 384)
  WHERE c.new_id IS NOT NULL)::real[]::vector::halfvec)
FROM copies c JOIN {vectors} v ON v.workspace_id = {source} AND v.node_id = c.old_id
"""


@dataclass(frozen=True, slots=True)
class Known:
    """An embed client that knows the vectors of the questions already."""

    vectors: dict[str, Vector]

    async def embed_query(self, _: EmbedModel, query: str) -> Vector:
        """Returns the vector of a question."""
        return self.vectors[query]


def measure(scratch: Path) -> dict[str, dict[str, Any]]:
    """Returns times, ratios and recall, by the number of nodes."""
    shutil.copytree(_TREE, scratch / _SOURCE)
    with running(
        scratch,
        model="minilm",
        VECTOR_INDEX_NODES=str(_INDEX_NODES),
        VECTOR_INDEX_INTERVAL_SECONDS="1",
        TERM_INDEX_NODES=str(_BLOCKS_NODES),
        TERM_INDEX_INTERVAL_SECONDS="1",
    ) as rig:
        rig.create(_SOURCE, _SOURCE)
        rig.index(_SOURCE)
        figures: dict[str, dict[str, Any]] = {}
        for size in SIZES:
            name = f"nodes-{size}"
            asyncio.run(_grow(rig, name, size))
            figures |= asyncio.run(_measure(rig, name, size))
        return figures


async def _grow(rig: Rig, name: str, size: int) -> None:
    """Makes a workspace of so many nodes, and waits for its index if it is to have one."""
    (rig.roots / name).mkdir()
    async with rig.caller() as calls:
        await calls.create(name, name)
    connection = await asyncpg.connect(rig.url, timeout=10)
    try:
        source = await connection.fetchval("SELECT id FROM workspaces WHERE name = $1", _SOURCE)
        target = await connection.fetchval("SELECT id FROM workspaces WHERE name = $1", name)
        model = await connection.fetchval(
            "UPDATE workspaces SET active_model_id = s.active_model_id FROM workspaces s "
            "WHERE workspaces.id = $2 AND s.id = $1 RETURNING s.active_model_id",
            source,
            target,
        )
        vectors = vectors_table(model)
        await add_partition(connection, vectors, target)
        there = await connection.fetchval(
            "SELECT count(*) FROM nodes WHERE workspace_id = $1", source
        )
        names = {
            "source": source,
            "target": target,
            "vectors": vectors,
            "noise": _NOISE,
            "nodes": size,
            "copies": -(-size // there),
        }
        await connection.execute(_COPY_FILES, source, target, names["copies"], timeout=600)
        await connection.execute("ANALYZE files; SET lodestone.notes_changes = 'on'")
        for statement in (_MAP_NODES, _COPY_NODES, _COPY_TERMS, _NOTE_TERMS, _COPY_VECTORS):
            await connection.execute(statement.format(**names), timeout=1800)
        await connection.execute("ANALYZE", timeout=600)
        began = time.monotonic()
        for table, least in (("term_blocks", _BLOCKS_NODES), ("vector_indexes", _INDEX_NODES)):
            while size >= least and not await connection.fetchval(
                f"SELECT true FROM {table} WHERE workspace_id = $1 LIMIT 1", target
            ):
                assert time.monotonic() < began + 3000, f"{table} was not made"
                await asyncio.sleep(1)
            say(f"{name}: {table} after {time.monotonic() - began:.0f} s")
    finally:
        await connection.close()


async def _measure(rig: Rig, name: str, size: int) -> dict[str, dict[str, Any]]:
    database = Database(rig.url, connections=8, timeout_seconds=60)
    await database.open()
    channel = connect(rig.embed.address)
    try:
        return await _figures(rig, database, EmbedClient(channel, 60), name, size)
    finally:
        await channel.close()
        await database.close()


async def _figures(
    rig: Rig, database: Database, embed: EmbedClient, name: str, size: int
) -> dict[str, dict[str, Any]]:
    workspaces = WorkspaceStore(database)
    workspace = await workspaces.get(name)
    assert workspace.active_model_id is not None
    model = await workspaces.model(workspace.active_model_id)
    remote = EmbedModel(model.name, model.fingerprint, model.dimensions, model.max_tokens, 1)
    questions = await _questions(database, workspace)
    known: dict[str, Vector] = {}
    forwards = []
    for question in questions:
        began = time.perf_counter()
        known[question] = await embed.embed_query(remote, question)
        forwards.append(time.perf_counter() - began)
    indexes = VectorIndexes(database, least_nodes=_INDEX_NODES, least_recall=_LEAST_RECALL)
    exact = SearchStore(database)
    by_sql = SearchStore(database, indexes)
    fast = SearchStore(database, indexes, TermBlocks(database))
    everything = SearchFilter()

    async def dense(store: SearchStore, question: str) -> Any:
        values = known[question].values
        return await store.dense(workspace.id, model.id, values, everything, _CANDIDATES)

    async def lexical(store: SearchStore, question: str) -> Any:
        terms = read_question(question).terms
        return await store.lexical(workspace.id, terms, everything, _CANDIDATES)

    io = IoClient(connect(rig.io.address), 60, parse_seconds=60, fetch_seconds=60)

    def engine(store: SearchStore) -> SearchEngine:
        return SearchEngine(
            store,
            workspaces,
            Known(known),  # type: ignore[arg-type] # the one call that a search makes
            io,
            candidates=_CANDIDATES,
            ranking=Ranking(),
            reranker=Reranker(Known(known), io, RerankRules()),  # type: ignore[arg-type] # off
        )

    matrix, lexicon, terms_of = await _reference(database, workspace, model.id)
    vectors = {
        question: np.frombuffer(vector.values, dtype="<f2").astype(np.float32)
        for question, vector in known.items()
    }

    async def by_numpy(question: str) -> Any:
        scores = matrix @ vectors[question]
        best = np.argpartition(-scores, _CANDIDATES)[:_CANDIDATES]
        return best[np.argsort(-scores[best])]

    async def by_bm25s(question: str) -> Any:
        tokens = [[term for term in terms_of(question) if term in lexicon.vocab_dict]]
        if not tokens[0]:
            return []
        return lexicon.retrieve(tokens, k=_CANDIDATES, show_progress=False)

    ways: dict[str, Callable[[str], Awaitable[Any]]] = {
        "dense": lambda question: dense(fast, question),
        "dense_by_scan": lambda question: dense(exact, question),
        "lexical": lambda question: lexical(fast, question),
        "lexical_by_sql": lambda question: lexical(exact, question),
        "engine": lambda question: engine(fast).search([workspace], question, everything),
        "engine_by_sql": lambda question: engine(by_sql).search([workspace], question, everything),
        "numpy": by_numpy,
        "bm25s": by_bm25s,
    }
    times = {way: await _times(ask, questions) for way, ask in ways.items()}
    found = {}
    for way, seconds in times.items():
        p50, p99 = 1000 * statistics.median(seconds), 1000 * _p99(seconds)
        goals = _GOALS.get(size, (None, None)) if way == "engine" else (None, None)
        found[f"search_{size}_{way}_p50_ms"] = figure(p50, goals[0], met=_met(p50, goals[0]))
        found[f"search_{size}_{way}_p99_ms"] = figure(p99, goals[1], met=_met(p99, goals[1]))
        say(f"{size} nodes, {way}: p50 {p50:.1f} ms, p99 {p99:.1f} ms")
    found[f"search_{size}_question_forward_p50_ms"] = figure(1000 * statistics.median(forwards))
    found[f"search_{size}_dense_to_numpy"] = figure(_ratio(times, "numpy", "dense"))
    found[f"search_{size}_lexical_to_bm25s"] = figure(_ratio(times, "bm25s", "lexical"))
    found[f"search_{size}_lexical_to_sql"] = figure(_ratio(times, "lexical_by_sql", "lexical"))
    found[f"search_{size}_engine_to_sql"] = figure(_ratio(times, "engine_by_sql", "engine"))
    recall = await _recall(questions, lambda q: dense(fast, q), lambda q: dense(exact, q))
    found[f"search_{size}_recall_at_10"] = figure(
        recall, _LEAST_RECALL, met=recall >= _LEAST_RECALL
    )
    say(f"{size} nodes: recall@10 {recall:.4f}")
    async with connect(rig.indexer.address) as channel:
        for at_once in (1, 8, 32):
            seconds = await _over_grpc(channel, name, questions, at_once)
            found[f"search_{size}_grpc_{at_once}_at_once_p50_ms"] = figure(
                1000 * statistics.median(seconds)
            )
            found[f"search_{size}_grpc_{at_once}_at_once_p99_ms"] = figure(1000 * _p99(seconds))
    return found


async def _questions(database: Database, workspace: Workspace) -> list[str]:
    """Returns questions in words, made of names of nodes."""
    async with database.connection() as connection:
        rows = await connection.fetch(
            "SELECT DISTINCT qualified_name FROM nodes WHERE workspace_id = $1 "
            "AND kind IN ('function', 'method', 'class') ORDER BY 1",
            workspace.id,
        )
    names = [row[0] for row in rows]
    chosen = random.Random(7).sample(names, min(_QUESTIONS, len(names)))
    return [f"how does {name.replace('.', ' ').replace('_', ' ')} work" for name in chosen]


async def _times(ask: Callable[[str], Awaitable[Any]], questions: Sequence[str]) -> list[float]:
    """Returns the seconds of each question, asked one after the other, once warm."""
    for question in questions[:10]:
        await ask(question)
    seconds = []
    for question in questions:
        began = time.perf_counter()
        await ask(question)
        seconds.append(time.perf_counter() - began)
    return seconds


async def _over_grpc(
    channel: Any, name: str, questions: Sequence[str], at_once: int
) -> list[float]:
    """Returns the seconds of each call, with so many at once; the question's forward included."""
    stub = search_service_pb2_grpc.SearchServiceStub(channel)
    left = list(questions)
    seconds: list[float] = []

    async def work() -> None:
        while left:
            question = left.pop()
            began = time.perf_counter()
            await stub.SearchNodes(
                search_service_pb2.SearchNodesRequest(parent=f"workspaces/{name}", query=question),
                timeout=120,
            )
            seconds.append(time.perf_counter() - began)

    await asyncio.gather(*(work() for _ in range(at_once)))
    return seconds


async def _reference(database: Database, workspace: Workspace, model_id: int) -> Any:
    """Returns the vectors as a matrix, the terms in `bm25s`, and how a question becomes terms."""
    async with database.connection() as connection:
        await register_vector(connection)
        rows = await connection.fetch(
            f"SELECT embedding FROM {vectors_table(model_id)} WHERE workspace_id = $1",
            workspace.id,
            timeout=600,
        )
        documents = await connection.fetch(
            "SELECT terms, counts FROM node_terms WHERE workspace_id = $1",
            workspace.id,
            timeout=600,
        )
    matrix = np.stack([row[0].to_numpy() for row in rows]).astype(np.float32)
    corpus = [
        [term for term, count in zip(row[0], row[1], strict=True) for _ in range(count)]
        for row in documents
    ]
    lexicon = bm25s.BM25()
    lexicon.index(corpus, show_progress=False)
    return matrix, lexicon, lambda question: read_question(question).terms


async def _recall(
    questions: Sequence[str],
    fast: Callable[[str], Awaitable[Any]],
    exact: Callable[[str], Awaitable[Any]],
) -> float:
    shared = wanted = 0
    for question in questions:
        truth = {item.node_id for item in (await exact(question))[:_K]}
        shared += len(truth & {item.node_id for item in (await fast(question))[:_K]})
        wanted += len(truth)
    return shared / wanted


def _ratio(times: dict[str, list[float]], reference: str, ours: str) -> float:
    return statistics.median(times[reference]) / statistics.median(times[ours])


def _p99(seconds: Sequence[float]) -> float:
    return sorted(seconds)[min(len(seconds) - 1, int(len(seconds) * 0.99))]


def _met(value: float, goal: float | None) -> bool:
    return goal is None or value <= goal


if __name__ == "__main__":
    print_measured(measure)
