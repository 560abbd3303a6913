"""Files and their nodes: the tables follow a parse, and keep what did not change."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.indexer.model import ParsedFile, Signature
from services.indexer.run import RunMode
from services.runtime.errors import NotFoundError
from tests.integration.oracle import broken_rules, rows_of
from tests.integration.replicas import (
    MODEL,
    content_hash,
    parsed_file,
    parsed_node,
    workspace_with_model,
)

if TYPE_CHECKING:
    from services.indexer.model import RegisteredModel
    from services.indexer.run import Run
    from tests.integration.replicas import Replica


async def _indexed(stores: Replica, *files: ParsedFile) -> tuple[Run, RegisteredModel]:
    workspace, model = await workspace_with_model(stores)
    await stores.queue(workspace)
    run = await stores.take()
    await stores.apply(run, model, *files)
    while claimed := await stores.nodes.claim(run, 100):
        await stores.complete(run, model, claimed)
    return run, model


async def _nodes(stores: Replica) -> dict[str, tuple[int, str]]:
    async with stores.database.connection() as connection:
        rows = await connection.fetch("SELECT qualified_name, id, status FROM nodes")
    return {row[0]: (row[1], row[2]) for row in rows}


async def test_what_did_not_change_keeps_its_id_and_its_vector(one: Replica) -> None:
    run, model = await _indexed(one, parsed_file("a.py", "a", "b", "c"))
    before = await _nodes(one)

    await one.apply(run, model, parsed_file("a.py", "new", "c", "a"))

    after = await _nodes(one)
    assert (after["a"], after["c"]) == (before["a"], before["c"])
    assert after["new"][1] == "pending"
    assert "b" not in after
    assert await one.value("SELECT array_agg(ordinal ORDER BY ordinal) FROM nodes") == [0, 1, 2]


async def test_a_text_that_the_cache_holds_waits_for_nothing(one: Replica) -> None:
    run, model = await _indexed(one, parsed_file("a.py", "a", "b"))

    await one.apply(run, model, parsed_file("copy.py", "b", "a"))

    assert await one.value("SELECT count(*) FROM nodes WHERE status <> 'embedded'") == 0
    counters = (await one.ledger.get("tree", run.id)).counters
    assert (counters.nodes_pending, counters.nodes_total) == (0, 4)


async def test_a_removed_file_takes_its_vectors_and_terms_with_it(one: Replica) -> None:
    run, _ = await _indexed(one, parsed_file("a.py", "a", "b"), parsed_file("b.py", "c"))

    await one.files.remove(run, ["a.py", "not-there.py"])

    for table in ("nodes", "node_vectors_m1", "node_terms", "files"):
        assert await one.value(f"SELECT count(*) FROM {table}") == 1
    counters = (await one.ledger.get("tree", run.id)).counters
    assert (counters.nodes_removed, counters.nodes_total) == (2, 1)


async def test_a_renamed_function_keeps_its_vector_and_is_found_by_its_new_name(
    one: Replica,
) -> None:
    run, model = await _indexed(one, parsed_file("a.py", "body"))
    file = parsed_file("a.py", "body")
    renamed = parsed_node("body", name="fetchPage")

    await one.apply(
        run,
        model,
        ParsedFile(
            file.path,
            b"x" * 32,
            file.signature,
            "python",
            9,
            has_syntax_errors=False,
            nodes=(renamed,),
        ),
    )

    assert await one.value("SELECT status FROM nodes") == "embedded"
    assert "fetch" in await one.value("SELECT name_terms FROM node_terms")


async def test_a_file_that_is_skipped_loses_its_nodes(one: Replica) -> None:
    run, model = await _indexed(one, parsed_file("a.py", "a"))
    skipped = ParsedFile(
        "a.py",
        bytes(32),
        Signature(9, 9, 9, 9),
        "",
        0,
        has_syntax_errors=False,
        nodes=(),
        skip_reason="SKIP_REASON_BINARY",
    )

    await one.apply(run, model, skipped)
    await one.ledger.finish(run, None)

    ended = await one.ledger.get("tree", run.id)
    assert await one.value("SELECT count(*) FROM nodes") == 0
    assert ended.skipped_by_reason == {"SKIP_REASON_BINARY": 1}


async def test_a_touched_file_keeps_all_but_its_signature(one: Replica) -> None:
    run, _ = await _indexed(one, parsed_file("a.py", "a"))

    await one.files.touch(run, {"a.py": Signature(5, 6, 7, 1 << 63, settled=True)})

    (known,) = await one.files.page(run.workspace_id, "", 10)
    assert known.signature == Signature(5, 6, 7, 0, settled=True)
    assert known.digest == parsed_file("a.py", "a").digest


async def test_files_are_paged_in_byte_order(one: Replica) -> None:
    names = ["a/b.py", "a.py", "Ä.py", "z.py", "a-b.py", "A.py", "𝄞.py", "豈.py"]
    run, _ = await _indexed(one, *(parsed_file(name, name) for name in names))

    seen, after = [], ""
    while page := await one.files.page(run.workspace_id, after, 3):
        seen += [file.path for file in page]
        after = page[-1].path

    assert seen == sorted(names, key=str.encode)


_TEXTS = st.lists(st.sampled_from("abcdef"), max_size=6)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(st.dictionaries(st.sampled_from(["p", "q"]), _TEXTS), min_size=1, max_size=4))
async def test_any_changes_end_as_an_index_from_scratch(
    one: Replica, steps: list[dict[str, list[str]]]
) -> None:
    """Also with twins, within a file and across files, and in any order."""
    workspace = None
    for name in ("work", "scratch"):
        with contextlib.suppress(NotFoundError):
            await one.workspaces.delete(name)
    workspace, model = await workspace_with_model(one, "work")
    for step in steps:
        await _follow(one, workspace, model, step)
    scratch, _ = await workspace_with_model(one, "scratch")
    await _follow(one, scratch, model, steps[-1])

    url = one.database._url
    assert await rows_of(url, "work") == await rows_of(url, "scratch")
    assert await broken_rules(url) == []


async def _follow(
    stores: Replica, workspace: object, model: RegisteredModel, step: dict[str, list[str]]
) -> None:
    await stores.queue(workspace)  # type: ignore[arg-type]
    run = await stores.take()
    known = {file.path for file in await stores.files.page(run.workspace_id, "", 10)}
    await stores.files.remove(run, sorted(known - step.keys()))
    if step:
        await stores.apply(run, model, *(parsed_file(path, *step[path]) for path in step))
    while claimed := await stores.nodes.claim(run, 3):
        left = await stores.nodes.adopt(run, model.id, claimed)
        rest = [node for node in claimed if node.id in left]
        await stores.complete(run, model, rest)
    await stores.ledger.finish(run, None)


def test_hashes_of_short_texts_differ() -> None:
    assert content_hash("a") != content_hash("b")


async def test_another_model_sends_all_back_without_a_trace_of_the_old(one: Replica) -> None:
    """Terms too: a node that waits is found by neither arm. Its counters start anew."""
    run, _ = await _indexed(one, parsed_file("a.py", "a", "b"))
    other = await one.workspaces.register_model(replace(MODEL, fingerprint="0" * 64, dimensions=8))

    await one.workspaces.activate(run, other, one.ledger)

    counters = (await one.ledger.get("tree", run.id)).counters
    assert (counters.nodes_pending, counters.nodes_embedded, counters.nodes_total) == (2, 0, 2)
    assert await one.value("SELECT count(*) FROM node_terms") == 0
    assert await one.value("SELECT count(*) FROM node_vectors_m1") == 0
    assert await one.value("SELECT count(*) FROM embedding_cache WHERE model_id = 1") == 2


_COUNTED = """
SELECT (r.nodes_total, r.nodes_embedded, r.nodes_reused, r.nodes_pending) = (count(n),
    count(*) FILTER (WHERE n.status = 'embedded' AND n.embedded_run = r.id),
    count(*) FILTER (WHERE n.status = 'embedded' AND n.embedded_run IS DISTINCT FROM r.id),
    count(*) FILTER (WHERE n.status IN ('pending', 'processing')))
FROM runs r LEFT JOIN nodes n ON n.workspace_id = r.workspace_id AND (r.mode <> 'scoped'
  OR EXISTS (SELECT 1 FROM run_nodes s WHERE s.run_id = r.id AND s.node_id = n.id))
WHERE r.id = $1 GROUP BY r.workspace_id, r.id
"""


@pytest.mark.parametrize("mode", [RunMode.INCREMENTAL, RunMode.SCOPED])
async def test_a_run_counts_the_nodes_that_there_are_whatever_goes_meanwhile(
    one: Replica, mode: RunMode
) -> None:
    """Also where a file changes once more under the run.

    Red when a node that the run embedded goes as one that it reused, and when a scoped run goes on
    to count those of the text before.
    """
    first, model = await _indexed(one, parsed_file("a.py", "a", "b", "c"), parsed_file("b.py", "d"))
    await one.ledger.finish(first, None)
    paths = ("a.py",) if mode is RunMode.SCOPED else ()
    await one.queue(await one.workspaces.get("tree"), mode, paths=paths)
    run = await one.take()

    async def is_true() -> bool:
        return bool(await one.value(_COUNTED, run.id))

    if run.is_scoped:
        await one.ledger.cover_paths(run, ["a.py"])
    assert await is_true()
    await one.apply(run, model, parsed_file("a.py", "e", "b", "f", "d"))
    assert await is_true()
    await one.complete(run, model, await one.nodes.claim(run, 1))
    await one.apply(run, model, parsed_file("a.py", "g"))
    assert await is_true()
    await one.files.remove(run, ["a.py"])
    assert await is_true()
