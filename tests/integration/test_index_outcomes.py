"""What a run tells of each file that it looked into."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lodestone.indexer.v1 import index_run_service_pb2 as runs_pb2
from services.indexer.model import Failure
from services.indexer.run import OutcomeResult, RunCounters, RunMode
from services.indexer.run_spec import IfRunning
from services.indexer.storage.files import FileStore
from tests.integration.hooks import Hook
from tests.integration.indexing import State, indexing
from tests.integration.oracle import broken_rules
from tests.integration.replicas import (
    MODEL,
    Replica,
    parsed_file,
    replica,
    workspace_with_model,
)
from tests.integration.samples import write_many, write_tree

if TYPE_CHECKING:
    from pathlib import Path

    from services.indexer.run import Run
    from services.indexer.storage.database import Database
    from tests.integration.indexing import Indexing

Result = runs_pb2.Outcome.Result
_EXPIRE = "UPDATE runs SET lease_until = now() - interval '1 s' WHERE owner IS NOT NULL"
_FINAL = Failure("ERROR_REASON_INVALID_REQUEST", "no")
_CHANGED = Failure("ERROR_REASON_CONTENT_CHANGED", "again and again")


async def _listed(stores: Replica, run: Run, *results: str) -> dict[str, tuple[Any, ...]]:
    found = await stores.ledger.outcomes(run, results, ("", "", 0), 100)
    return {
        f"{item.path} {item.qualified_name}".rstrip(): (
            item.result,
            item.nodes_embedded,
            item.nodes_reused,
            item.nodes_failed,
            item.nodes_pending,
        )
        for item in found
    }


async def test_each_file_tells_what_became_of_it(services: Indexing, roots: Path) -> None:
    """The sum over the files is what the run counts; an unchanged file is none of it."""
    tree = write_tree(roots / "tree", twin_py="def alone():\n    return 1\n")
    (tree / "binary.py").write_bytes(b"\0" * 64)
    await services.create("tree", "tree")
    first = await services.run("tree")
    cold = {item.path: item for item in await services.outcomes(first)}
    (tree / "twin.py").write_text("def alone():\n    return 2\n")
    (tree / "app.py").touch()
    (tree / "copy.py").write_text((tree / "db/store.py").read_text())
    (tree / "web/price.js").unlink()

    second = await services.run("tree")

    warm = {item.path: item for item in await services.outcomes(second)}
    assert {item.result for item in cold.values()} <= {Result.RESULT_OK, Result.RESULT_SKIPPED}
    assert sum(item.nodes_embedded for item in cold.values()) == first.progress.nodes_embedded
    assert all(item.duration.ToNanoseconds() > 0 for item in cold.values())
    # Others may be read again, as they were written a moment before: they are what they were.
    assert warm["app.py"].result == Result.RESULT_REUSED
    changed = {
        path: item.result for path, item in warm.items() if item.result != Result.RESULT_REUSED
    }
    assert changed == {
        "copy.py": Result.RESULT_OK,
        "twin.py": Result.RESULT_OK,
        "web/price.js": Result.RESULT_REMOVED,
    }
    assert (warm["twin.py"].nodes_embedded, warm["copy.py"].nodes_embedded) == (1, 0)
    assert warm["copy.py"].nodes_reused > 0
    assert second.state == State.STATE_SUCCEEDED
    assert await broken_rules(services.url) == []


async def test_failed_and_stale_nodes_stand_beside_their_file(one: Replica) -> None:
    """What is left is the work of a retry, and the sum of all stays what the run counts (I4)."""
    workspace, model = await workspace_with_model(one)
    await one.queue(workspace)
    run = await one.take()
    await one.apply(run, model, parsed_file("a.py", "a", "b", "c"), parsed_file("d.py", "d"))
    a, b, c, d = await one.nodes.claim(run, 9)
    await one.nodes.fail(run, {a.id: _FINAL, b.id: _CHANGED}, [a, b], "fetch", 1)
    await one.complete(run, model, [c])
    await one.nodes.release(run, [d])

    await one.ledger.finish(run, None)

    assert await _listed(one, run) == {
        "a.py": ("ok", 1, 0, 2, 0),
        "a.py a": ("failed", 0, 0, 0, 0),
        "a.py b": ("stale", 0, 0, 0, 0),
        "d.py": ("ok", 0, 0, 0, 1),
    }
    assert set(await _listed(one, run, "failed", "timeout", "stale")) == {"a.py a", "a.py b"}
    assert await broken_rules(one.database._url) == []
    ended = await one.ledger.get("tree", run.id)
    again, _ = await one.ledger.retry(ended, run.id)
    taken = await one.take()
    assert taken.id == again.id
    claimed = await one.nodes.claim(taken, 9)
    assert [node.qualified_name for node in claimed] == ["a", "b", "d"]


async def test_a_later_run_tells_the_stage_at_which_a_node_failed(one: Replica) -> None:
    """Red when the end of a run lists what failed as failed at `embed`."""
    workspace, model = await workspace_with_model(one)
    await one.queue(workspace)
    run = await one.take()
    await one.apply(run, model, parsed_file("a.py", "a", "b"))
    a, b = await one.nodes.claim(run, 9)
    await one.nodes.fail(run, {a.id: _FINAL}, [a], "fetch", 1, seconds=0.5)
    await one.nodes.fail(run, {b.id: _FINAL}, [b], "embed", 1, seconds=0.25)
    await one.ledger.finish(run, None)
    await one.queue(workspace)
    later = await one.take()

    await one.ledger.finish(later, None)

    for ended, seconds in ((run, (0.5, 0.25)), (later, (0.0, 0.0))):
        told = await one.ledger.outcomes(ended, ("failed",), ("", "", 0), 9)
        assert [(node.qualified_name, node.stage) for node in told] == [
            ("a", "fetch"),
            ("b", "embed"),
        ]
        assert tuple(node.duration_seconds for node in told) == seconds


async def test_a_later_run_of_a_model_tells_the_stage_at_which_a_node_failed(one: Replica) -> None:
    """Red when the queue of a model keeps no stage."""
    workspace, first = await workspace_with_model(one)
    await one.queue(workspace)
    run = await one.take()
    await one.apply(run, first, parsed_file("a.py", "a"))
    await one.complete(run, first, await one.nodes.claim(run, 9))
    await one.ledger.finish(run, None)
    second = await one.workspaces.register_model(
        replace(MODEL, name="models/second", fingerprint="a" * 64)
    )
    await one.models.add(workspace, second)
    beside = await one.take()
    (node,) = await one.model_nodes.claim(beside, 9)
    await one.model_nodes.fail(beside, {node.id: _FINAL}, [node], "fetch", 1)
    await one.ledger.finish(beside, None)
    await one.queue(workspace, RunMode.EMBED_ONLY, IfRunning.QUEUE, model_id=second.id)
    later = await one.take()

    await one.ledger.finish(later, None)

    (told,) = await one.ledger.outcomes(later, ("failed",), ("", "", 0), 9)
    assert (later.model_id, told.stage) == (second.id, "fetch")


async def test_whatever_becomes_of_a_file_or_node_takes_its_time(
    roots: Path, sockets: Path, migrated_url: str
) -> None:
    """Red when unchanged files or failed nodes are told without."""
    tree, hook = roots / "tree", Hook()
    hook.poison = "value + 3\n"
    write_many(tree, 8, per_file=2)
    (tree / "held.py").write_text("def held():\n    return 1\n")
    async with indexing(roots, sockets, migrated_url, embed=hook.app) as services:
        await services.create("tree", "tree")
        first = await services.run("tree")
        (node,) = [n for n in await services.failures(first) if n.qualified_name]
        (tree / "held.py").touch()
        second = {item.path: item for item in await services.outcomes(await services.run("tree"))}
        unchanged = second["held.py"]

    assert (node.stage, node.qualified_name) == ("embed", "work_3")
    assert 0 < node.duration.ToNanoseconds() < 30e9
    assert unchanged.result == Result.RESULT_REUSED
    assert unchanged.duration.ToNanoseconds() > 0


async def test_what_an_earlier_owner_parsed_stays_told(one: Replica, database: Database) -> None:
    """Red when a take-over forgets all outcomes: nobody parses those files again (I4)."""
    workspace, model = await workspace_with_model(one)
    await one.queue(workspace)
    lost = await one.take()
    await one.apply(lost, model, parsed_file("a.py", "a"))
    await one.value(_EXPIRE)
    other = replica(database)
    run = await other.take()
    await other.complete(run, model, await other.nodes.claim(run, 9))

    await other.ledger.finish(run, None)

    assert await _listed(one, run) == {"a.py": ("ok", 1, 0, 0, 0)}
    assert (await one.ledger.get("tree", run.id)).counters.files_parsed == 1
    assert await broken_rules(database._url) == []


async def test_nodes_that_an_earlier_run_left_are_told_with_their_file(one: Replica) -> None:
    """A run that parses nothing embeds them: their file's outcome says so, at the stage `embed`."""
    workspace, model = await workspace_with_model(one)
    await one.queue(workspace)
    run = await one.take()
    await one.apply(run, model, parsed_file("a.py", "a", "b"))
    await one.ledger.finish(run, None)
    await one.queue(workspace, RunMode.EMBED_ONLY, IfRunning.QUEUE)
    rest = await one.take()
    await one.complete(rest, model, await one.nodes.claim(rest, 9))

    await one.ledger.finish(rest, None)

    (told,) = await one.ledger.outcomes(rest, (), ("", "", 0), 9)
    assert (told.result, told.stage, told.nodes_embedded) == (OutcomeResult.OK, "embed", 2)
    assert await broken_rules(one.database._url) == []


async def test_a_file_that_was_parsed_again_counts_once(one: Replica) -> None:
    workspace, model = await workspace_with_model(one)
    await one.queue(workspace)
    run = await one.take()
    await one.apply(run, model, parsed_file("a.py", "a"))
    files = FileStore(one.database, one.ledger)
    await files.apply(run, model.id, "recipe", [parsed_file("a.py", "b")], 1.0, attempts=2)
    await one.complete(run, model, await one.nodes.claim(run, 9))

    await one.ledger.finish(run, None)

    (told,) = await one.ledger.outcomes(run, (), ("", "", 0), 9)
    assert (told.attempts, told.duration_seconds, told.nodes_embedded) == (2, 1.0, 1)
    assert (await one.ledger.get("tree", run.id)).counters.files_parsed == 1
    assert await broken_rules(one.database._url) == []


async def test_a_scoped_run_counts_what_it_left_out_also_under_an_earlier_owner(
    one: Replica, database: Database
) -> None:
    """Red when its row alone is read, which a take-over begins anew: it had left out nothing."""
    workspace, model = await workspace_with_model(one)
    await one.queue(workspace, RunMode.SCOPED, paths=("a.bin", "b.py"))
    run = await one.take()
    binary = replace(parsed_file("a.bin"), skip_reason="SKIP_REASON_BINARY")
    await one.apply(run, model, binary, parsed_file("b.py", "b"))
    await one.value(_EXPIRE)
    later = replica(database)
    run = await later.take()
    await later.ledger.record(run, RunCounters(files_scanned=2))
    await later.ledger.cover_paths(run, ["a.bin", "b.py"])
    await later.ledger.finish_scan(run, {}, ())
    await later.ledger.finish(run, None)

    ended = await one.ledger.get("tree", run.id)

    assert (ended.counters.files_scanned, ended.counters.files_skipped) == (1, 1)
    assert ended.skipped_by_reason == {"SKIP_REASON_BINARY": 1}
