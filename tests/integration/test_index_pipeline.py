"""The whole pipeline with real services: what a change costs, and what the index then holds."""

from __future__ import annotations

import asyncio
import itertools
import shutil
from typing import TYPE_CHECKING, Any

import asyncpg
import grpc
import pytest
from opentelemetry.trace import SpanKind

from lodestone.indexer.v1 import index_run_service_pb2 as runs_pb2
from lodestone.indexer.v1 import workspace_service_pb2 as workspaces_pb2
from services.indexer import metrics
from services.indexer.storage.nodes import NodeQueue
from tests.integration.indexing import FINISHED, Mode, State, indexing
from tests.integration.oracle import broken_rules, check, rows_of
from tests.integration.samples import APP, STORE, edit, write_many, write_tree

if TYPE_CHECKING:
    from pathlib import Path

    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from tests.integration.indexing import Indexing


@pytest.fixture
async def tree(services: Indexing, roots: Path) -> Path:
    """An indexed tree in the workspace `tree`."""
    folder = write_tree(roots / "tree")
    await services.create("tree", "tree")
    await services.succeed("tree")
    return folder


def _counted() -> dict[tuple[str, str], float]:
    """Returns what the process has counted of nodes, forwards and runs, by outcome or state."""
    return {
        (
            sample.name.removeprefix("lodestone_indexer_"),
            "".join(sample.labels.values()),
        ): sample.value
        for family in (metrics.NODES, metrics.FORWARDS, metrics.RUNS)
        for metric in family.collect()
        for sample in metric.samples
    }


async def test_a_cold_run_embeds_every_text_once(services: Indexing, roots: Path) -> None:
    """Red with a metric that counts the twins of a batch as embedded."""
    write_tree(roots / "tree", twin_py=STORE)
    await services.create("tree", "tree")
    before = _counted()

    progress = await services.succeed("tree")

    grown = {name: value - before[name] for name, value in _counted().items()}
    assert grown["nodes_total", "embedded"] == progress.nodes_embedded
    assert 0 < grown["nodes_total", "reused"] <= progress.nodes_reused
    assert grown["nodes_total", "failed"] == grown["nodes_total", "retried"] == 0
    assert grown["forwards_total", ""] == progress.forwards
    assert grown["runs_total", "succeeded"] == 1
    rows = await rows_of(services.url, "tree")
    texts = {row[11] for row in rows["nodes"]}
    assert progress.files_scanned == 4
    assert progress.forwards == progress.nodes_embedded == len(texts)
    assert progress.nodes_total == len(rows["nodes"]) == len(texts) + progress.nodes_reused
    assert progress.nodes_reused > 0
    await check(services, "tree", "tree")


async def test_an_unchanged_tree_costs_no_forward(services: Indexing, tree: Path) -> None:
    progress = await services.succeed("tree")

    assert progress.forwards == 0
    assert progress.nodes_reused == progress.nodes_total > 0
    assert progress.files_to_parse == progress.files_parsed
    await check(services, "tree", "tree")


async def test_a_full_run_reads_all_and_embeds_nothing_anew(services: Indexing, tree: Path) -> None:
    progress = await services.succeed("tree", Mode.MODE_FULL)

    assert progress.files_parsed == 3
    assert progress.forwards == 0


async def test_an_edited_function_costs_one_forward(services: Indexing, tree: Path) -> None:
    edit(tree / "app.py", "return json.loads(raw)", "return json.loads(raw.strip())")

    progress = await services.succeed("tree")

    assert progress.forwards == progress.nodes_embedded == 1
    await check(services, "tree", "tree")


async def test_a_comment_between_functions_moves_nodes_and_keeps_their_vectors(
    services: Indexing, tree: Path
) -> None:
    before = await _ids(services.url)
    edit(tree / "app.py", "def render_error", "# Errors are told as JSON.\ndef render_error")

    progress = await services.succeed("tree")

    assert progress.forwards == 0
    assert await _ids(services.url) == before
    await check(services, "tree", "tree")


@pytest.mark.parametrize("target", ["renamed.py", "deep/er/app.py"])
async def test_a_renamed_or_moved_file_costs_nothing(
    services: Indexing, tree: Path, target: str
) -> None:
    (tree / target).parent.mkdir(parents=True, exist_ok=True)
    (tree / "app.py").rename(tree / target)

    progress = await services.succeed("tree")

    assert progress.forwards == 0
    assert {hit.path for hit in await services.search("tree", "parse_body")} >= {target}
    await check(services, "tree", "tree")


async def test_a_copied_file_costs_nothing(services: Indexing, tree: Path) -> None:
    shutil.copy(tree / "app.py", tree / "copy.py")

    assert (await services.succeed("tree")).forwards == 0
    await check(services, "tree", "tree")


async def test_a_deleted_file_leaves_nothing(services: Indexing, tree: Path) -> None:
    (tree / "app.py").unlink()

    progress = await services.succeed("tree")

    assert progress.nodes_removed > 0
    assert "app.py" not in {hit.path for hit in await services.search("tree", "parse_body")}
    await check(services, "tree", "tree")


async def test_a_branch_switched_back_costs_nothing(services: Indexing, tree: Path) -> None:
    edit(tree / "app.py", "def parse_body(raw)", "def parse_request(raw)")
    (tree / "db" / "store.py").unlink()
    there = await services.succeed("tree")
    (tree / "app.py").write_text(APP)
    (tree / "db" / "store.py").write_text(STORE)

    back = await services.succeed("tree")

    assert there.forwards > 0
    assert back.forwards == 0
    await check(services, "tree", "tree")


async def test_two_workspaces_share_what_was_embedded(services: Indexing, tree: Path) -> None:
    shutil.copytree(tree, tree.parent / "other")
    await services.create("other", "other")

    assert (await services.succeed("other")).forwards == 0
    await check(services, "other", "tree")


async def test_a_tree_without_files_is_indexed_as_nothing(services: Indexing, roots: Path) -> None:
    (roots / "tree").mkdir()
    await services.create("tree", "tree")

    assert (await services.succeed("tree")).nodes_total == 0


async def test_a_missing_folder_fails_the_run_and_removes_nothing(
    services: Indexing, tree: Path
) -> None:
    before = await rows_of(services.url, "tree")
    shutil.move(tree, tree.parent / "away")

    run = await services.run("tree")

    assert run.state == State.STATE_FAILED
    assert run.error.message
    assert await rows_of(services.url, "tree") == before
    assert await broken_rules(services.url) == []


async def test_several_batches_and_files_end_as_one_index(services: Indexing, roots: Path) -> None:
    write_many(roots / "tree", 900, per_file=9)
    await services.create("tree", "tree")

    progress = await services.succeed("tree")

    assert progress.forwards == progress.nodes_total
    assert progress.files_scanned == 100
    await check(services, "tree", "tree")


async def test_two_connections_are_enough(roots: Path, sockets: Path, migrated_url: str) -> None:
    """No call holds one connection while it waits for another."""
    write_many(roots / "tree", 300, per_file=3)
    async with indexing(roots, sockets, migrated_url, database_connections=2) as services:
        await services.create("tree", "tree")

        await services.succeed("tree")

        await check(services, "tree", "tree")


async def test_an_embed_service_that_takes_few_texts_at_once_is_obeyed(
    roots: Path, sockets: Path, migrated_url: str
) -> None:
    write_many(roots / "tree", 50)
    async with indexing(
        roots, sockets, migrated_url, embed_settings={"max_batch_texts": 3}
    ) as services:
        await services.create("tree", "tree")

        assert (await services.succeed("tree")).nodes_failed == 0


async def test_another_model_embeds_all_again_and_the_way_back_is_free(
    roots: Path, sockets: Path, migrated_url: str
) -> None:
    write_tree(roots / "tree")
    forwards: list[int] = []
    warnings: list[list[str]] = []
    for model in ("hashing:64", "hashing:32", "hashing:64"):
        async with indexing(
            roots, sockets, migrated_url, embed_settings={"model": model}
        ) as services:
            if not forwards:
                await services.create("tree", "tree")
            run = await services.run("tree")
            forwards.append(run.progress.forwards)
            warnings.append(list(run.warnings))
            assert await services.search("tree", "parse_body")
            await check(services, "tree", "tree")

    assert forwards[0] == forwards[1] > 0
    assert forwards[2] == 0
    assert not warnings[0]
    assert ["Everything is embedded again" in told for (told,) in warnings[1:]] == [True, True]


async def test_a_watch_tells_the_end_and_a_token_goes_on_where_it_was(
    services: Indexing, tree: Path
) -> None:
    run = await services.begin("tree")
    seen = [
        message
        async for message in services.runs.WatchIndexRun(
            runs_pb2.WatchIndexRunRequest(name=run.name)
        )
    ]
    states = [message.index_run.state for message in seen if message.HasField("index_run")]

    resumed = [
        message
        async for message in services.runs.WatchIndexRun(
            runs_pb2.WatchIndexRunRequest(name=run.name, resume_token=seen[-1].resume_token)
        )
    ]

    assert states[-1] == State.STATE_SUCCEEDED
    assert not set(states[:-1]) & FINISHED
    assert resumed == []


async def test_a_watch_with_a_token_of_another_run_is_refused(
    services: Indexing, tree: Path
) -> None:
    first, second = await services.run("tree"), await services.run("tree")
    watch = services.runs.WatchIndexRun(runs_pb2.WatchIndexRunRequest(name=first.name))
    token = [message.resume_token async for message in watch][-1]

    request = runs_pb2.WatchIndexRunRequest(name=second.name, resume_token=token)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await anext(aiter(services.runs.WatchIndexRun(request)))

    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_deleted_workspace_leaves_no_row_and_no_partition(
    services: Indexing, tree: Path
) -> None:
    await services.delete("tree")

    connection = await asyncpg.connect(services.url)
    counts = [
        await connection.fetchval(f"SELECT count(*) FROM {table}")
        for table in ("files", "nodes", "node_terms", "runs", "run_outcomes", "workspaces")
    ]
    partitions = await connection.fetch("SELECT relname FROM pg_class WHERE relname ~ '_w[0-9]+$'")
    await connection.close()
    assert counts == [0] * 6
    assert partitions == []
    with pytest.raises(grpc.aio.AioRpcError, match="tree"):
        await services.trees.GetWorkspace(
            workspaces_pb2.GetWorkspaceRequest(name="workspaces/tree")
        )


async def _ids(url: str) -> dict[int, bytes]:
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch("SELECT node_id, embedding::text FROM node_vectors_m1")
    finally:
        await connection.close()
    return {row[0]: row[1] for row in rows}


async def test_twins_in_batches_of_their_own_share_one_forward(
    roots: Path, sockets: Path, migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red when the cache is looked at before a text is told to be in flight: it ends in between."""
    numbers = itertools.count()
    adopt = NodeQueue.adopt

    async def adopt_and_dawdle(self: NodeQueue, *arguments: Any) -> Any:
        found = await adopt(self, *arguments)
        await asyncio.sleep(next(numbers) % 4 * 0.05)  # the answer is old when it is used
        return found

    monkeypatch.setattr(NodeQueue, "adopt", adopt_and_dawdle)
    (roots / "tree").mkdir()
    for number in range(60):
        (roots / "tree" / f"twin_{number:02}.py").write_text("def twin():\n    return 1\n")
    async with indexing(
        roots, sockets, migrated_url, embed_batch_nodes=1, embed_batches_in_flight=8
    ) as services:
        await services.create("tree", "tree")

        run = await services.succeed("tree")

    assert (run.nodes_total, run.forwards) == (60, 1)


async def test_a_run_that_outlives_its_indexer_stays_in_the_trace_of_its_call(
    services: Indexing, roots: Path, spans: InMemorySpanExporter
) -> None:
    """Red when the row keeps no trace: each owner begins one of its own."""
    write_many(roots / "tree", 60, per_file=8)
    await services.create("tree", "tree")
    run = await services.begin("tree")
    await services.indexer.stop()
    await services.indexer.start()
    assert (await services.wait(run)).state == State.STATE_SUCCEEDED

    ended = spans.get_finished_spans()
    (asked,) = [
        span
        for span in ended
        if span.name.endswith("/CreateIndexRun") and span.kind is SpanKind.SERVER
    ]
    runs = [span for span in ended if span.name == "lodestone.indexer.run"]
    assert asked.context is not None
    assert runs
    assert {span.parent.span_id for span in runs if span.parent} == {asked.context.span_id}
    assert {span.context.trace_id for span in runs if span.context} == {asked.context.trace_id}
