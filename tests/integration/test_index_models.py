"""Models side by side on one workspace, through all services."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Any

import asyncpg
import grpc
import pytest
from prometheus_client import REGISTRY

from lodestone.indexer.v1 import index_run_service_pb2 as runs_pb2
from lodestone.indexer.v1 import maintenance_service_pb2 as models_pb2
from services.embed.app import EmbedApp
from tests.integration.indexing import Mode, State, indexing
from tests.integration.indexing import until as until_called
from tests.integration.io_hooks import IoHook
from tests.integration.oracle import broken_rules, check, rows_of
from tests.integration.samples import write_many
from tests.integration.two_models import (
    TREE,
    activate,
    add_small,
    complete,
    list_models,
    maintenance,
    remove,
    runs_of_models,
    two_models,
    until,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.integration.hooks import Hook
    from tests.integration.indexing import Indexing

_NODES = 40

_VECTORS = """
SELECT f.path, n.ordinal, v.content_hash, v.embedding::text
FROM node_vectors_m{model} v JOIN nodes n ON n.workspace_id = v.workspace_id AND n.id = v.node_id
JOIN files f ON f.workspace_id = n.workspace_id AND f.id = n.file_id
JOIN workspaces w ON w.id = n.workspace_id WHERE w.name = $1 ORDER BY f.path, n.ordinal
"""


@pytest.fixture
async def services(
    roots: Path, sockets: Path, migrated_url: str, hook: Hook
) -> AsyncIterator[Indexing]:
    async with two_models(roots, sockets, migrated_url, hook, _NODES) as running:
        yield running


@pytest.fixture
def models(services: Indexing) -> Any:
    return maintenance(services)


async def _vectors(url: str, workspace: str) -> list[tuple[Any, ...]]:
    """Returns the vectors that search uses, ids aside."""
    connection = await asyncpg.connect(url)
    try:
        model = await connection.fetchval(
            "SELECT active_model_id FROM workspaces WHERE name = $1", workspace
        )
        rows = await connection.fetch(_VECTORS.format(model=model), workspace)
    finally:
        await connection.close()
    return [tuple(row) for row in rows]


async def _value(services: Indexing, sql: str, *arguments: Any) -> Any:
    connection = await asyncpg.connect(services.url)
    try:
        return await connection.fetchval(sql, *arguments)
    finally:
        await connection.close()


def _changes() -> dict[str, float]:
    name, changes = "lodestone_indexer_model_changes_total", ("added", "activated", "removed")
    return {each: REGISTRY.get_sample_value(name, {"change": each}) or 0.0 for each in changes}


async def test_a_model_is_embedded_beside_the_other_and_then_searched(
    services: Indexing, models: Any, roots: Path, sockets: Path
) -> None:
    """The oracle: an index built from scratch with the new model alone is the same, row for row."""
    before = _changes()
    first = (await list_models(models))["hashing"]
    added = await add_small(models)
    assert (added.active, added.nodes_total, added.dimensions) == (False, _NODES, 32)
    await complete(services, models)
    beside = (await list_models(models))["small"]
    (run,) = await runs_of_models(services)
    assert await broken_rules(services.url) == []

    activated = await activate(models, "small")

    assert (first.active, first.nodes_embedded, first.serving) == (
        True,
        _NODES,
        models_pb2.SERVING_READY,
    )
    assert (beside.nodes_embedded, beside.nodes_pending, beside.nodes_failed) == (_NODES, 0, 0)
    assert beside.vector_bytes > 0
    assert beside.texts_per_second > 0
    assert (run.state, run.mode, run.model) == (
        State.STATE_SUCCEEDED,
        Mode.MODE_EMBED_ONLY,
        "models/small",
    )
    assert run.priority == runs_pb2.IndexRun.PRIORITY_BACKGROUND
    assert (run.progress.nodes_embedded, run.progress.nodes_total) == (_NODES, _NODES)
    assert activated.active
    assert await services.search("tree", "function_7")
    await remove(models, "hashing")
    assert {name: value - before[name] for name, value in _changes().items()} == {
        "added": 1,
        "activated": 1,
        "removed": 1,
    }
    assert set(await list_models(models)) == {"small"}
    assert (await services.succeed("tree")).forwards == 0
    assert await broken_rules(services.url) == []
    found = await _vectors(services.url, "tree"), await rows_of(services.url, "tree")
    await services.delete("tree")
    await services.indexer.stop()
    (sockets / "b").mkdir()
    async with indexing(
        roots, sockets / "b", services.url, embed_settings={"model": "hashing:32"}
    ) as scratch:
        await scratch.create("scratch", "tree")
        await scratch.succeed("scratch")
        assert (
            await _vectors(scratch.url, "scratch"),
            await rows_of(scratch.url, "scratch"),
        ) == found


async def test_a_model_with_nodes_to_embed_is_activated_by_force_alone(
    services: Indexing, models: Any, hook: Hook
) -> None:
    hook.hold()
    await add_small(models)
    await hook.reached.wait()

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await activate(models, "small")
    refused = await list_models(models)
    await activate(models, "small", force=True)
    forced = await list_models(models)
    hook.go_on.set()

    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert f"{_NODES} nodes" in (caught.value.details() or "")
    assert refused["hashing"].active
    assert (forced["small"].active, forced["small"].nodes_pending) == (True, _NODES)
    assert (forced["hashing"].nodes_embedded, forced["hashing"].nodes_pending) == (_NODES, 0)

    async def done() -> bool:
        return (await list_models(models))["small"].nodes_embedded == _NODES

    await until(done)
    await services.succeed("tree")
    await check(services, "tree", "tree")


async def test_changes_reach_both_models_the_active_one_first(
    services: Indexing, models: Any, roots: Path, hook: Hook
) -> None:
    """A run over files neither joins nor waits for the background: that gives way to it."""
    await add_small(models)
    await complete(services, models)
    tree = roots / "tree"
    changed, gone, *_ = sorted(tree.rglob("*.py"))
    changed.write_text("def brand_new(value):\n    return value * 42\n")
    gone.unlink()
    hook.calls.clear()

    progress = await services.succeed("tree")
    await complete(services, models)

    assert progress.forwards == 1
    assert [len(call) for call in hook.calls] == [1, 1]
    listed = await list_models(models)
    assert listed["hashing"].nodes_embedded == listed["small"].nodes_embedded == _NODES - 9
    await check(services, "tree", "tree")
    await activate(models, "small")
    assert (await services.search("tree", "brand_new", k=1))[0].qualified_name == "brand_new"
    assert await broken_rules(services.url) == []


async def test_an_indexer_that_stops_in_the_middle_of_a_model_goes_on_with_it(
    services: Indexing, models: Any, hook: Hook
) -> None:
    hook.hold()
    await add_small(models)
    await hook.reached.wait()
    hook.go_on.set()
    await until(lambda: _some(models))
    await services.indexer.stop()
    half = len(hook.texts)
    await services.indexer.start()
    await services.channel.channel_ready()

    await complete(services, models)

    assert len(hook.texts) <= half + _NODES
    assert (await list_models(models))["small"].nodes_embedded == _NODES
    assert await broken_rules(services.url) == []


async def _some(models: Any) -> bool:
    return (await list_models(models))["small"].nodes_embedded > 0


async def test_a_model_that_is_not_served_with_its_weights_is_told(
    services: Indexing, models: Any, roots: Path, sockets: Path
) -> None:
    """One that was chosen is never replaced; its run says what is wrong."""
    await add_small(models)
    await complete(services, models)
    await activate(models, "small")
    await services.indexer.stop()
    (sockets / "b").mkdir()
    other = {"model": "hashing:64", "extra_models": "small=hashing:48"}
    async with indexing(roots, sockets / "b", services.url, embed_settings=other) as again:
        stub = maintenance(again)
        await until(lambda: _is_other(stub))
        failed = await again.run("tree")

        assert failed.state == State.STATE_FAILED
        assert "other weights" in failed.error.message
        with pytest.raises(grpc.aio.AioRpcError, match="serve it, or index again"):
            await again.search("tree", "function_7")
        assert await broken_rules(again.url) == []
        await add_small(stub)
        await until(lambda: _twice(stub))


async def test_a_model_that_is_loaded_again_is_waited_for(
    roots: Path, sockets: Path, migrated_url: str, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red when embed says of such a model what it says of one that it does not have.

    It was started again, and serves as soon as its first model does: a run at work ended failed,
    and searches were told to index again.
    """
    io_hook = IoHook()
    io_hook.install(monkeypatch)
    open_model, let = EmbedApp._open, asyncio.Event()

    async def open_later(app: EmbedApp, spec: Any) -> Any:
        if spec.model_id == "small":
            await let.wait()
        return await open_model(app, spec)

    async with two_models(roots, sockets, migrated_url, hook, _NODES) as services:
        models = maintenance(services)
        await add_small(models)
        await complete(services, models)
        await activate(models, "small")
        write_many(roots / "tree", _NODES + 5, per_file=5)
        io_hook.hold("ReadContents")
        run = await services.begin("tree")
        await io_hook.reached.wait()
        await services.embed.stop()
        monkeypatch.setattr(EmbedApp, "_open", open_later)
        await services.embed.start()

        search = asyncio.create_task(services.search("tree", "work_7"))
        calls = len(hook.calls)
        io_hook.go_on.set()
        await until_called(lambda: len(hook.calls) >= calls + 2)
        let.set()
        run = await services.wait(run)

        assert run.state == State.STATE_SUCCEEDED
        assert await search
        assert await broken_rules(services.url) == []


@pytest.mark.parametrize("named", ["models/renamed", ""])
async def test_a_model_that_is_served_by_another_name_is_searched_by_that(
    services: Indexing, roots: Path, sockets: Path, named: str
) -> None:
    """Red when it keeps its first name: runs succeeded, and all searches said to index again.

    And when it is looked for by that alone, where the settings name another: all was embedded anew.
    """
    await services.indexer.stop()
    (sockets / "b").mkdir()
    renamed = {"model": "hashing:32", "extra_models": "renamed=hashing:64"}
    async with indexing(
        roots, sockets / "b", services.url, embed_settings=renamed, model=named
    ) as again:
        run = await again.run("tree")

        assert (run.state, run.progress.forwards) == (State.STATE_SUCCEEDED, 0)
        assert await again.search("tree", "work_7")


async def _is_other(models: Any) -> bool:
    serving = (await list_models(models))["small"].serving
    return serving == models_pb2.SERVING_OTHER_FINGERPRINT


async def _twice(models: Any) -> bool:
    response = await models.ListWorkspaceModels(models_pb2.ListWorkspaceModelsRequest(parent=TREE))
    return [item.dimensions for item in response.models if item.nodes_embedded] == [64, 32, 48]


async def test_models_are_compared_by_what_the_index_answers(
    services: Indexing, models: Any
) -> None:
    await add_small(models)
    await complete(services, models)

    found = await models.CompareWorkspaceModels(
        models_pb2.CompareWorkspaceModelsRequest(parent=TREE, questions=20)
    )
    again = await models.CompareWorkspaceModels(
        models_pb2.CompareWorkspaceModelsRequest(parent=TREE, questions=20)
    )

    assert [score.model for score in found.scores] == ["models/hashing", "models/small"]
    assert found.questions == 20
    assert all(0 < score.mrr_at_10 <= score.recall_at_10 <= 1 for score in found.scores)
    assert all(score.search_duration.ToNanoseconds() > 0 for score in found.scores)
    assert [s.mrr_at_10 for s in again.scores] == [s.mrr_at_10 for s in found.scores]


async def test_models_of_more_nodes_than_are_asked_for_are_compared_by_some(
    services: Indexing, models: Any, roots: Path
) -> None:
    write_many(roots / "tree" / "many", 60)
    await services.succeed("tree")

    found = await models.CompareWorkspaceModels(
        models_pb2.CompareWorkspaceModelsRequest(parent=TREE, questions=5)
    )

    assert found.questions == 5
    assert all(score.recall_at_10 > 0 for score in found.scores)


async def test_a_run_over_files_is_no_run_of_a_model(
    services: Indexing, models: Any, hook: Hook
) -> None:
    """Red when a new run joins the background, which looks at no file."""
    hook.hold()
    await add_small(models)
    await hook.reached.wait()

    run = await services.begin("tree")
    hook.go_on.set()
    ended = await services.wait(run)

    assert ended.mode == Mode.MODE_INCREMENTAL
    assert ended.state == State.STATE_SUCCEEDED
    await complete(services, models)
    with pytest.raises(grpc.aio.AioRpcError, match="embed-only"):
        await services.runs.CreateIndexRun(
            runs_pb2.CreateIndexRunRequest(
                parent=TREE, request_id=str(uuid.uuid4()), model="models/small"
            )
        )


async def test_a_removed_model_leaves_its_cache_for_a_while(
    services: Indexing, models: Any
) -> None:
    await add_small(models)
    await complete(services, models)

    with pytest.raises(grpc.aio.AioRpcError, match="Search uses"):
        await remove(models, "hashing")
    await remove(models, "small")

    assert await _value(services, "SELECT count(*) FROM node_vectors_m2") == 0
    assert await _value(services, "SELECT count(*) FROM embedding_cache WHERE model_id = 2") > 0
    assert await _value(services, "SELECT released_at IS NOT NULL FROM models WHERE id = 2")
    with pytest.raises(grpc.aio.AioRpcError, match="no model small"):
        await activate(models, "small")
    await add_small(models)
    await complete(services, models)
    assert (await list_models(models))["small"].nodes_embedded == _NODES
    assert not await _value(services, "SELECT released_at IS NOT NULL FROM models WHERE id = 2")
