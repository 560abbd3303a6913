"""A service answers with something that was not asked for: nothing of it is stored (S6, P12).

Each kind of wrong answer comes over gRPC from a real service whose servicer sends it in place of
the right one. Red, each by its own case, without the check that it names in io_client.py,
embed_client.py and tree_diff.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import asyncpg
import grpc
import numpy as np
import pytest

from lodestone.indexer.v1 import index_run_service_pb2 as runs_pb2
from services.io.convert import failed_message
from services.io.errors import PathNotFoundError
from services.runtime.status import read_rpc_error
from tests.integration.indexing import Mode, State, indexing, until
from tests.integration.oracle import broken_rules, check
from tests.integration.samples import edit, write_tree

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence
    from pathlib import Path

    from tests.integration.hooks import Hook
    from tests.integration.indexing import Indexing
    from tests.integration.io_hooks import IoHook

_SIZE = 64


@pytest.fixture
async def services(
    roots: Path, sockets: Path, migrated_url: str, hook: Hook, io_hook: IoHook
) -> AsyncIterator[Indexing]:
    """Services over a tree that is not indexed yet."""
    write_tree(roots / "tree")
    async with indexing(roots, sockets, migrated_url, embed=hook.app) as running:
        await running.create("tree", "tree")
        yield running


async def _stored(services: Indexing) -> dict[str, int]:
    """Returns how many rows there are that a wrong answer could have made."""
    connection = await asyncpg.connect(services.url)
    tables = {
        "files": "files",
        "nodes in work": "nodes WHERE status = 'processing'",
        "embedded nodes": "nodes WHERE status = 'embedded'",
        "failed nodes": "nodes WHERE status = 'failed'",
        "cached vectors": "embedding_cache",
        "terms": "node_terms",
        "terms of texts": "content_terms",
        "vectors": "node_vectors_m1",
    }
    try:
        return {
            name: await connection.fetchval(f"SELECT count(*) FROM {table}")
            for name, table in tables.items()
        }
    finally:
        await connection.close()


def _right(_response: Any, _texts: Any = None) -> None:
    pass


def _less(response: Any, _texts: Any = None) -> None:
    del response.results[-1]


def _more(response: Any, _texts: Any = None) -> None:
    response.results.add().CopyFrom(response.results[0])


def _other_model(response: Any, _texts: Any = None) -> None:
    response.model_fingerprint = "f" * 64


def _short(response: Any, _texts: Any = None) -> None:
    vector = response.results[-1].embedding
    vector.vector = vector.vector[:-2]


def _wide(response: Any, _texts: Any = None) -> None:
    response.results[0].embedding.vector += b"\0\0"


EMBED_ANSWERS: dict[str, tuple[Callable[[Any, Any], None], str]] = {
    "one vector less": (_less, "another number of vectors"),
    "one vector more": (_more, "another number of vectors"),
    "vectors of another model": (_other_model, "vectors of another model"),
    "a vector with a number less": (_short, "vectors of another size"),
    "a vector with a number more": (_wide, "vectors of another size"),
}


@pytest.mark.parametrize("kind", EMBED_ANSWERS)
async def test_vectors_that_break_the_contract_fail_the_run_and_leave_nodes_to_the_next(
    services: Indexing, hook: Hook, kind: str
) -> None:
    hook.spoil, message = EMBED_ANSWERS[kind]

    run = await services.run("tree")
    stored = await _stored(services)
    hook.spoil = _right
    again = await services.succeed("tree")

    assert run.state == State.STATE_FAILED
    assert message in run.error.message
    assert stored.pop("files") == 3
    assert set(stored.values()) == {0}, stored
    assert again.nodes_embedded == again.nodes_total > 0
    await check(services, "tree", "tree")


BAD_VECTORS: dict[str, list[float]] = {
    "no number": [float("nan"), *[0.5] * (_SIZE - 1)],
    "infinite": [*[0.5] * (_SIZE - 1), float("-inf")],
    "zero": [0.0] * _SIZE,
    "negative zero": [-0.0] * _SIZE,
}


@pytest.mark.parametrize("kind", BAD_VECTORS)
async def test_a_vector_that_cannot_be_searched_fails_its_node_alone(
    services: Indexing, hook: Hook, kind: str
) -> None:
    def spoil(response: Any, texts: Sequence[str]) -> None:
        for text, result in zip(texts, response.results, strict=True):
            if "json.loads" in text and "def parse_body" in text:
                result.embedding.vector = np.array(BAD_VECTORS[kind], dtype="<f2").tobytes()

    hook.spoil = spoil
    run = await services.run("tree")
    failures = await services.failures(run)
    broken = await broken_rules(services.url)
    stored = await _stored(services)
    hook.spoil = _right
    again = await services.succeed("tree", Mode.MODE_FULL)

    assert run.state == State.STATE_SUCCEEDED_WITH_WARNINGS
    assert [item.qualified_name for item in failures] == ["parse_body"]
    assert "cannot be searched" in failures[0].error.message
    assert broken == []
    assert stored["failed nodes"] == run.progress.nodes_failed == 1
    assert stored["vectors"] == stored["terms"] == run.progress.nodes_total - 1
    assert again.forwards == 1
    await check(services, "tree", "tree")


@pytest.mark.parametrize("kind", EMBED_ANSWERS)
async def test_a_question_whose_vector_breaks_the_contract_finds_nothing(
    services: Indexing, hook: Hook, kind: str
) -> None:
    await services.succeed("tree")
    hook.spoil, message = EMBED_ANSWERS[kind]

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await services.search("tree", "parse a body")

    assert caught.value.code() == grpc.StatusCode.INTERNAL
    assert read_rpc_error(caught.value).reason == "ERROR_REASON_INTERNAL"
    assert message in read_rpc_error(caught.value).message


def _changed(change: Callable[[Any], object]) -> Callable[[Any], Iterable[Any]]:
    def spoil(answer: Any) -> Iterable[Any]:
        if hasattr(answer, "parsed") and not answer.parsed.nodes:
            return [answer]  # a file that did not change
        change(answer)
        return [answer]

    return spoil


def _other_index(answer: Any) -> None:
    answer.index += 1000


def _no_outcome(answer: Any) -> None:
    answer.ClearField("parsed")


def _unknown_kind(answer: Any) -> None:
    answer.parsed.nodes[0].kind = 99


def _no_node(answer: Any) -> None:
    answer.parsed.references.add(node=1000, kind=1, name="name", line=1)


def _unknown_reference(answer: Any) -> None:
    answer.parsed.references.add(node=1, kind=99, name="name", line=1)


def _later_parent(answer: Any) -> None:
    answer.parsed.nodes[0].parent = 1000


def _short_hash(answer: Any) -> None:
    answer.parsed.nodes[0].content_hash = b"short"


def _short_digest(answer: Any) -> None:
    answer.parsed.digest = b"short"


def _reversed(answer: Any) -> None:
    files = list(answer.files)[::-1]
    del answer.files[:]
    answer.files.extend(files)


PARSE_ANSWERS: dict[str, Callable[[Any], Iterable[Any]]] = {
    "a file less": lambda answer: [] if answer.index == 0 else [answer],
    "a file twice": lambda answer: [answer, answer],
    "another file": _changed(_other_index),
    "no outcome": _changed(_no_outcome),
    "a node of no known kind": _changed(_unknown_kind),
    "a node whose parent is not there": _changed(_later_parent),
    "a node with a hash of another size": _changed(_short_hash),
    "a digest of another size": _changed(_short_digest),
    "a reference of no node": _changed(_no_node),
    "a reference of no known kind": _changed(_unknown_reference),
}
SCAN_ANSWERS: dict[str, Callable[[Any], Iterable[Any]]] = {
    "no summary": lambda answer: [] if answer.HasField("summary") else [answer],
    "files out of order": _changed(_reversed),
    "a file twice": lambda answer: [answer, answer],
}


@pytest.mark.parametrize(
    "wrong",
    [
        *({"ParseFiles": spoil} for spoil in PARSE_ANSWERS.values()),
        *({"ScanTree": spoil} for spoil in SCAN_ANSWERS.values()),
    ],
    ids=[*PARSE_ANSWERS, *(f"scan: {kind}" for kind in SCAN_ANSWERS)],
)
async def test_files_that_were_not_asked_for_fail_the_run_and_no_file_is_touched(
    services: Indexing, hook: Hook, io_hook: IoHook, roots: Path, wrong: Any
) -> None:
    await services.succeed("tree")
    before = await _stored(services)
    for name in ("app.py", "db/store.py"):
        edit(roots / "tree" / name, "return", "return not")
    hook.calls.clear()
    io_hook.spoil.update(wrong)

    run = await services.run("tree")
    after, calls = await _stored(services), len(hook.calls)
    io_hook.spoil.clear()
    await services.succeed("tree")

    assert run.state == State.STATE_FAILED
    assert run.error.message.startswith("io "), run.error
    assert after == before
    assert calls == 0
    await check(services, "tree", "tree")


async def test_files_that_were_not_found_in_a_tree_that_is_away_are_not_gone(
    services: Indexing, io_hook: IoHook, roots: Path
) -> None:
    """A worker that opens the tree just after it went tells each file of it so."""
    await services.succeed("tree")
    before = await _stored(services)
    edit(roots / "tree" / "app.py", "return", "return not")

    def not_found(answer: Any) -> Iterable[Any]:
        if (roots / "tree").exists():
            (roots / "tree").rename(roots / "away")
        yield failed_message(answer.index, PathNotFoundError("The file does not exist."))

    io_hook.spoil["ParseFiles"] = not_found
    run = await services.run("tree")
    after = await _stored(services)
    io_hook.spoil.clear()
    (roots / "away").rename(roots / "tree")
    await services.succeed("tree")

    assert run.state == State.STATE_FAILED
    assert "folder" in run.error.message
    assert after == before
    await check(services, "tree", "tree")


def _other_text(response: Any) -> None:
    response.results[0].content.content_hash = bytes(32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_less, "another number of texts"),
        (_more, "another number of texts"),
        (_other_text, "another text than was asked for"),
    ],
)
async def test_texts_that_were_not_asked_for_never_reach_the_model(
    services: Indexing, hook: Hook, io_hook: IoHook, change: Any, message: str
) -> None:
    io_hook.spoil["ReadContents"] = _changed(change)

    run = await services.run("tree")
    stored, calls = await _stored(services), len(hook.calls)
    io_hook.spoil.clear()
    await services.succeed("tree")

    assert run.state == State.STATE_FAILED
    assert message in run.error.message
    assert stored.pop("files") == 3
    assert set(stored.values()) == {0}, stored
    assert calls == 0
    await check(services, "tree", "tree")


@pytest.mark.parametrize("change", [_less, _more])
async def test_another_number_of_snippets_is_no_answer_to_a_search(
    services: Indexing, io_hook: IoHook, change: Any
) -> None:
    await services.succeed("tree")
    io_hook.spoil["ReadSnippets"] = _changed(change)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await services.search("tree", "parse a body")

    assert caught.value.code() == grpc.StatusCode.INTERNAL
    assert "another number of snippets" in read_rpc_error(caught.value).message


async def test_a_file_that_changes_before_io_told_its_rules_is_stored_with_them(
    services: Indexing, hook: Hook, io_hook: IoHook, roots: Path
) -> None:
    """A run embeds what waits while it asks by which rules files are cut.

    Red when a file that turns out to be changed is stored at once: it had no rules.
    """
    hook.hold()
    run = await services.begin("tree")
    await hook.reached.wait()
    await services.wait(run, lambda seen: seen.progress.files_parsed == 3)
    await services.runs.CancelIndexRun(runs_pb2.CancelIndexRunRequest(name=run.name))
    hook.go_on.set()
    await services.wait(run)
    edit(roots / "tree" / "app.py", "json.loads(raw)", "json.loads(raw.strip())")
    asked = io_hook.calls["ListLanguages"]
    parsed = io_hook.calls["ParseFiles"]
    io_hook.hold("ListLanguages")

    run = await services.begin("tree", Mode.MODE_EMBED_ONLY)
    await until(
        lambda: io_hook.calls["ListLanguages"] == asked + 2 or io_hook.calls["ParseFiles"] > parsed
    )
    io_hook.go_on.set()
    ended = await services.wait(run)

    assert ended.state == State.STATE_SUCCEEDED
    connection = await asyncpg.connect(services.url)
    rules = await connection.fetch("SELECT DISTINCT recipe FROM files")
    await connection.close()
    assert len(rules) == 1
    await check(services, "tree", "tree")
