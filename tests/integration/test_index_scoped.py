"""Scoped runs: they look at, embed and remove what they were given, and nothing else."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import asyncpg
import grpc
import pytest

from lodestone.indexer.v1 import index_run_service_pb2 as runs_pb2
from services.indexer.model import Failure
from services.indexer.run import RunMode
from services.indexer.run_spec import IfRunning
from services.indexer.scope import PathScope
from services.indexer.transitions import RunState
from services.runtime.globs import escape_glob
from tests.integration.indexing import Mode, State, indexing
from tests.integration.oracle import broken_rules, check, rows_of
from tests.integration.replicas import parsed_file, replica, workspace_with_model
from tests.integration.samples import edit, write_many, write_tree

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from services.indexer.storage.database import Database
    from tests.integration.hooks import Hook
    from tests.integration.indexing import Indexing
    from tests.integration.replicas import Replica

_QUEUE = IfRunning.QUEUE
_FINAL = Failure("ERROR_REASON_INVALID_UTF8", "never")


@pytest.fixture
async def services(
    roots: Path, sockets: Path, migrated_url: str, hook: Hook
) -> AsyncIterator[Indexing]:
    async with indexing(
        roots, sockets, migrated_url, embed=hook.app, embed_batch_nodes=4
    ) as running:
        yield running


@pytest.fixture
async def tree(services: Indexing, roots: Path) -> Path:
    """An indexed tree with folders of similar names."""
    folder = write_tree(
        roots / "tree",
        src__a_py="def alpha():\n    return 1\n",
        src__deep__b_py="def beta():\n    return 2\n",
        src_utils__a_py="def gamma():\n    return 3\n",
    )
    await services.create("tree", "tree")
    await services.succeed("tree")
    return folder


async def _scoped(services: Indexing, **fields: object) -> runs_pb2.IndexRun:
    return await services.run("tree", Mode.MODE_SCOPED, **fields)


def _change_all(tree: Path) -> None:
    edit(tree / "src" / "a.py", "return 1", "return 11")
    edit(tree / "src" / "deep" / "b.py", "return 2", "return 22")
    edit(tree / "src_utils" / "a.py", "return 3", "return 33")
    edit(tree / "app.py", "json.loads(raw)", "json.loads(raw.strip())")


async def test_a_folder_is_looked_at_and_not_its_namesakes(
    services: Indexing, tree: Path, hook: Hook
) -> None:
    """Red with a scope that compares prefixes: `src_utils/a.py` looked gone and was removed."""
    _change_all(tree)
    hook.calls.clear()

    run = await _scoped(services, paths=["src"])

    assert run.state == State.STATE_SUCCEEDED
    assert run.progress.files_scanned == run.progress.files_parsed == 2
    assert sorted(hook.texts) == ["def alpha():\n    return 11", "def beta():\n    return 22"]
    assert run.progress.nodes_total == run.progress.nodes_embedded == 2
    assert run.progress.nodes_removed == 2, "the two that were replaced"
    assert await broken_rules(services.url) == []
    await services.succeed("tree")
    await check(services, "tree", "tree")


@pytest.mark.parametrize(
    ("paths", "embedded"),
    [
        (["src/a.py"], ["11"]),
        (["./src//deep/"], ["22"]),
        (["src/*.py"], ["11"]),
        (["src/**"], ["11", "22"]),
        (["a.py", "b.py"], []),
        (["*/a.py"], ["11", "33"]),
        (["b.*"], ["22"]),
        (["."], ["11", "22", "33", "strip"]),
    ],
)
async def test_paths_and_globs_name_files(
    services: Indexing, tree: Path, hook: Hook, paths: list[str], embedded: list[str]
) -> None:
    _change_all(tree)
    hook.calls.clear()

    run = await _scoped(services, paths=paths)

    assert run.progress.nodes_embedded == len(embedded)
    for part in embedded:
        assert len([text for text in hook.texts if part in text]) == 1
    assert list(run.paths)


async def test_names_with_odd_characters_are_found_by_their_name(
    services: Indexing, tree: Path
) -> None:
    """Also what ignore files would read as a pattern, as io is told names in their syntax."""
    names = ["[a]*.py", "#x.py", "!not.py", "a b .py", "back\\slash.py", "ü.py"]
    for number, name in enumerate(names):
        (tree / name).write_text(f"def odd_{number}():\n    return {number}\n")

    given = [name.replace("\\", "\\\\").replace("*", "\\*") for name in names]
    run = await _scoped(services, paths=given)

    assert (run.progress.files_scanned, run.progress.nodes_embedded) == (6, 6)
    for name in names:
        (tree / name).unlink()
    again = await _scoped(services, paths=given)
    assert again.progress.nodes_removed == 6
    await check(services, "tree", "tree")


async def test_a_scoped_run_removes_what_is_gone_there_and_nothing_elsewhere(
    services: Indexing, tree: Path
) -> None:
    (tree / "src" / "a.py").unlink()
    (tree / "src_utils" / "a.py").unlink()
    (tree / "app.py").unlink()

    run = await _scoped(services, paths=["src"])

    paths = {row[0] for row in (await rows_of(services.url, "tree"))["files"]}
    assert run.progress.nodes_removed == 1
    assert paths == {"app.py", "db/store.py", "src/deep/b.py", "src_utils/a.py", "web/price.js"}
    await services.succeed("tree")
    await check(services, "tree", "tree")


async def test_a_scoped_run_leaves_what_else_waits_alone(
    services: Indexing, tree: Path, hook: Hook
) -> None:
    """Red with a claim that takes whatever waits: all 40 nodes of the cancelled run went too."""
    write_many(tree / "bulk", 40)
    hook.hold()
    bulk = await services.begin("tree")
    await hook.reached.wait()
    await services.wait(bulk, lambda seen: seen.progress.nodes_total_final)
    await services.runs.CancelIndexRun(runs_pb2.CancelIndexRunRequest(name=bulk.name))
    await services.wait(bulk)
    edit(tree / "src" / "a.py", "return 1", "return 11")
    hook.go_on.set()
    hook.calls.clear()

    run = await _scoped(services, paths=["src/a.py"])

    assert run.state == State.STATE_SUCCEEDED
    assert hook.texts == ["def alpha():\n    return 11"]
    assert (run.progress.nodes_total, run.progress.nodes_pending) == (1, 0)
    assert await _count(services.url, "status = 'pending'") == 40
    left = await services.run("tree", Mode.MODE_EMBED_ONLY)
    assert left.progress.nodes_embedded == 40
    assert left.progress.files_scanned == 0
    await check(services, "tree", "tree")


async def test_nodes_are_embedded_by_id_and_foreign_ids_are_left_out(
    services: Indexing, tree: Path, hook: Hook
) -> None:
    write_many(tree / "bulk", 12)
    hook.poison = "value + 7\n"
    failed = await services.run("tree")
    assert failed.progress.nodes_failed == 1
    hook.poison = ""
    hook.calls.clear()
    connection = await asyncpg.connect(services.url)
    (node,) = await connection.fetch("SELECT id FROM nodes WHERE status = 'failed'")
    await connection.close()

    run = await _scoped(services, node_ids=[node["id"], 999_999])

    assert run.state == State.STATE_SUCCEEDED_WITH_WARNINGS
    assert list(run.warnings) == ["1 of 2 nodes are not in the workspace."]
    assert len(hook.texts) == run.progress.nodes_embedded == 1
    assert await _count(services.url, "status <> 'embedded'") == 0


async def test_what_failed_and_what_is_left_is_retried_in_one_call(
    services: Indexing, tree: Path, hook: Hook
) -> None:
    write_many(tree / "bulk", 12)
    (tree / "bulk" / "bad*.py").write_text("x = 1\n")
    (tree / "bulk" / "bad*.py").chmod(0o000)
    hook.poison = "value + 7\n"
    failed = await services.run("tree")
    hook.poison = ""
    hook.calls.clear()
    (tree / "bulk" / "bad*.py").chmod(0o644)
    request = runs_pb2.RetryIndexRunRequest(name=failed.name, request_id=str(uuid.uuid4()))

    response = await services.runs.RetryIndexRun(request)
    repeated = await services.runs.RetryIndexRun(request)
    run = await services.wait(response.index_run)

    assert (response.created, repeated.created) == (True, False)
    assert repeated.index_run.name == run.name
    assert run.retry_of == failed.name
    assert run.state == State.STATE_SUCCEEDED
    assert len([text for text in hook.texts if "work_7(" in text]) == 1
    assert len(hook.texts) == run.progress.nodes_embedded <= 2
    await check(services, "tree", "tree")


async def test_a_retry_of_a_cancelled_run_embeds_what_it_left(
    services: Indexing, tree: Path, hook: Hook
) -> None:
    write_many(tree / "bulk", 20)
    hook.hold()
    run = await services.begin("tree")
    await hook.reached.wait()
    await services.wait(run, lambda seen: seen.progress.nodes_total_final)
    await services.runs.CancelIndexRun(runs_pb2.CancelIndexRunRequest(name=run.name))
    await services.wait(run)
    hook.go_on.set()

    response = await services.runs.RetryIndexRun(
        runs_pb2.RetryIndexRunRequest(name=run.name, request_id=str(uuid.uuid4()))
    )
    retried = await services.wait(response.index_run)

    assert retried.mode == Mode.MODE_SCOPED
    assert retried.progress.nodes_embedded == retried.progress.nodes_total == 20
    await check(services, "tree", "tree")


async def test_a_run_that_is_not_finished_is_not_retried(services: Indexing, hook: Hook) -> None:
    write_many(services.roots / "tree", 10)
    await services.create("tree", "tree")
    hook.hold()
    run = await services.begin("tree")

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await services.runs.RetryIndexRun(
            runs_pb2.RetryIndexRunRequest(name=run.name, request_id=str(uuid.uuid4()))
        )

    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    hook.go_on.set()
    await services.wait(run)


@pytest.mark.parametrize(
    ("mode", "fields"),
    [
        (Mode.MODE_SCOPED, {}),
        (Mode.MODE_INCREMENTAL, {"paths": ["src"]}),
        (Mode.MODE_SCOPED, {"paths": ["/etc"]}),
        (Mode.MODE_SCOPED, {"paths": ["src/../.."]}),
        (Mode.MODE_SCOPED, {"paths": [""]}),
        (Mode.MODE_SCOPED, {"node_ids": [0]}),
    ],
)
async def test_a_scope_that_makes_no_sense_is_refused(
    services: Indexing, tree: Path, mode: Mode.ValueType, fields: dict[str, list[str]]
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await services.begin("tree", mode, **fields)

    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_scoped_run_passes_a_paused_one_and_others_wait_behind_it(one: Replica) -> None:
    workspace, _ = await workspace_with_model(one)
    paused = await one.queue(workspace)
    await one.ledger.request_pause(paused)
    whole = await one.queue(workspace, if_running=_QUEUE)
    scoped = await one.queue(workspace, RunMode.SCOPED, _QUEUE, paths=("src",))

    taken = await one.take()

    assert taken.id == scoped.id
    await one.ledger.finish(taken, None)
    assert await one.ledger.take(10) is None
    await one.ledger.request_cancel(paused)
    assert (await one.take()).id == whole.id


async def test_a_scoped_run_ends_with_counts_of_its_own_nodes(one: Replica) -> None:
    workspace, model = await workspace_with_model(one)
    await one.queue(workspace)
    run = await one.take()
    await one.apply(run, model, parsed_file("src/a.py", "a", "b"), parsed_file("c.py", "c"))
    claimed = await one.nodes.claim(run, 3)
    await one.nodes.fail(run, {claimed[2].id: _FINAL}, claimed, "embed", 1)
    await one.ledger.finish(run, None)
    await one.queue(workspace, RunMode.SCOPED, paths=("src",))
    scoped = await one.take()

    await one.ledger.cover_paths(scoped, ["src/a.py"])
    taken = await one.nodes.claim(scoped, 10)
    await one.complete(scoped, model, taken)
    state = await one.ledger.finish(scoped, None)

    ended = await one.ledger.get("tree", scoped.id)
    assert [node.path for node in taken] == ["src/a.py"] * 2
    assert state is RunState.SUCCEEDED
    assert ended.counters.nodes_total == ended.counters.nodes_embedded == 2
    (outcome,) = await one.ledger.outcomes(ended, (), ("", "", 0), 10)
    assert (outcome.path, outcome.result, outcome.nodes_embedded) == ("src/a.py", "ok", 2)
    assert await broken_rules(one.database._url) == []


async def _count(url: str, condition: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        return int(await connection.fetchval(f"SELECT count(*) FROM nodes WHERE {condition}"))
    finally:
        await connection.close()


async def test_files_of_names_are_those_that_the_scope_takes(database: Database) -> None:
    """Page by page. Red when `a` means all that begins with `a`, or a page loses what is left."""
    stores = replica(database)
    workspace, model = await workspace_with_model(stores)
    await stores.queue(workspace)
    run = await stores.take()
    paths = ["a", "a-b", "a.py", "a/x", "a/y/z", "a0", "b/a", "b/c", "ä/x", "é", "a/\uffff"]
    await stores.apply(run, model, *(parsed_file(path, path) for path in paths))

    for names in (["a"], ["a/y", "b"], ["a", "a/x", "a/y/z"], ["ä", "none"], paths):
        found: list[str] = []
        while page := await stores.files.page_of(
            workspace.id, names, found[-1] if found else "", 2
        ):
            found += [file.path for file in page]
        taken = PathScope(map(escape_glob, names))
        assert found == sorted((path for path in paths if taken.takes(path)), key=str.encode)
