"""The Python client against all services and a real PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from services.client import (
    DeadlineError,
    Filter,
    Freshness,
    InvalidCallError,
    Lodestone,
    NotFoundError,
    RunState,
    StateConflictError,
    UnavailableError,
)
from tests.integration.indexing import Mode, indexing
from tests.integration.samples import edit, write_many, write_tree

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from tests.integration.hooks import Hook
    from tests.integration.indexing import Indexing

_DOCUMENT = Path(__file__).parents[2] / "docs" / "client.md"


@pytest.fixture
async def client(services: Indexing, roots: Path) -> AsyncIterator[Lodestone]:
    """A client of services that have one workspace."""
    write_tree(roots / "tree")
    await services.create("tree", "tree")
    async with Lodestone.connect(_address(services)) as client:
        yield client


@pytest.fixture
def silent_address() -> Iterator[str]:
    """Where somebody listens and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def _address(services: Indexing) -> str:
    return f"unix:{services.folder}/indexer"


async def test_the_client_indexes_searches_and_reads(client: Lodestone, roots: Path) -> None:
    run = await client.index()
    assert run.state is RunState.SUCCEEDED
    assert run.forwards > 0

    page = await client.search("parse_body", limit=2, only=Filter(languages=("python",)))
    hit = page.hits[0]
    more = await client.search(
        "parse_body", limit=2, only=Filter(languages=("python",)), page_token=page.next_page_token
    )
    lines = await client.read_hit(hit)
    context = await client.context("parse_body", token_budget=100)

    assert (len(page), page.index_run) == (2, run.name)
    assert (hit.name, hit.freshness) == ("parse_body", Freshness.FRESH)
    assert {each.node_id for each in page}.isdisjoint(each.node_id for each in more)
    assert lines.text == f"{hit.text}\n"
    assert lines.freshness is Freshness.FRESH
    assert hit.text in context.text
    assert (context.pieces[0].path, context.tokens <= 100) == ("app.py", True)


async def test_a_context_of_several_workspaces(
    client: Lodestone, services: Indexing, roots: Path
) -> None:
    write_tree(roots / "other", extra_py="def other_parse_body(text):\n    return text\n")
    await services.create("other", "other")
    await services.succeed("other")
    await client.index("tree")

    context = await client.context("parse_body", workspace="tree", other_workspaces=["other"])

    named = {(piece.workspace, piece.path) for piece in context.pieces}
    assert {("workspaces/tree", "app.py"), ("workspaces/other", "extra.py")} <= named
    assert "[other] extra.py:1-2 other_parse_body" in context.text


async def test_status_tells_what_is_indexed_and_what_runs(client: Lodestone, roots: Path) -> None:
    empty = await client.status()
    run = await client.index()
    write_many(roots / "tree" / "many", 40)
    full = await client.status()

    assert (empty.files, empty.last_run, empty.workspace.last_run) == (0, None, "")
    assert (full.files, full.nodes_embedded) == (3, run.nodes_total)
    assert full.last_run == run
    assert full.current_run is None


async def test_status_tells_the_run_that_is_at_work_and_not_the_one_behind_it(
    roots: Path, sockets: Path, migrated_url: str, hook: Hook
) -> None:
    write_tree(roots / "tree")
    async with indexing(roots, sockets, migrated_url, embed=hook.app) as services:
        await services.create("tree", "tree")
        hook.hold()
        at_work = await services.begin("tree")
        await hook.reached.wait()
        await services.begin("tree", Mode.MODE_SCOPED, paths=["app.py"])
        async with Lodestone.connect(_address(services)) as client:
            status = await client.status("tree")
        hook.go_on.set()
        await services.wait(at_work)

    assert status.current_run is not None
    assert (status.current_run.name, status.current_run.state) == (at_work.name, RunState.RUNNING)
    assert status.last_run is None


async def test_a_run_tells_the_trace_in_which_its_work_is(
    client: Lodestone, spans: InMemorySpanExporter
) -> None:
    """Red with a run that is read without its trace."""
    run = await client.index()
    status = await client.status()

    ended = spans.get_finished_spans()
    works = [span for span in ended if (span.attributes or {}).get("lodestone.run")]
    assert [f"{span.context.trace_id:032x}" for span in works if span.context] == [run.trace_id]
    assert status.last_run is not None
    assert status.last_run.trace_id == run.trace_id


async def test_a_run_over_some_paths_looks_at_these_alone(client: Lodestone, roots: Path) -> None:
    await client.index()
    edit(roots / "tree" / "app.py", "Parses a JSON body", "Reads a body")
    edit(roots / "tree" / "db" / "store.py", "timeout=3", "timeout=4")

    run = await client.index(paths=["db"])

    assert (run.state, run.mode) == (RunState.SUCCEEDED, "scoped")
    assert (await client.read("db/store.py")).freshness is Freshness.FRESH
    assert (await client.read("app.py")).freshness is Freshness.CHANGED


async def test_errors_carry_the_reason_of_the_service(client: Lodestone) -> None:
    with pytest.raises(StateConflictError) as conflict:
        await client.search("x")
    with pytest.raises(NotFoundError) as missing:
        await client.search("x", workspace="none-such")
    with pytest.raises(InvalidCallError) as invalid:
        await client.context("x", token_budget=0)
    with pytest.raises(InvalidCallError) as unnamed:
        await client.index(paths=["db"], full=True)

    assert conflict.value.reason == "STATE_CONFLICT"
    assert missing.value.reason == "NOT_FOUND"
    assert invalid.value.reason == "INVALID_REQUEST"
    assert any("token_budget" in field for field in invalid.value.metadata)
    assert unnamed.value.reason == ""


async def test_without_a_name_there_must_be_one_workspace(
    services: Indexing, client: Lodestone
) -> None:
    await services.create("another", "another")

    with pytest.raises(InvalidCallError, match="workspaces/another, workspaces/tree"):
        await client.status()
    assert (await client.status("tree")).workspace.name == "workspaces/tree"
    async with Lodestone.connect(_address(services), workspace="another") as named:
        assert (await named.status()).workspace.name == "workspaces/another"


async def test_no_call_outlives_its_deadline(silent_address: str, sockets: Path) -> None:
    async with Lodestone.connect(silent_address, timeout_seconds=0.5) as client:
        with pytest.raises(DeadlineError):
            await asyncio.wait_for(client.workspaces(), 5)
    async with Lodestone.connect(f"unix:{sockets}/nobody") as client:
        with pytest.raises(UnavailableError):
            await asyncio.wait_for(client.workspaces(), 15)


async def test_a_run_is_followed_over_a_restart_of_the_indexer(
    services: Indexing, client: Lodestone, roots: Path
) -> None:
    """Red when a watch does not go on after the error that a stopping indexer ends it with."""
    write_many(roots / "tree" / "many", 2000)
    run = await client.start_index()
    states = [run]
    async with contextlib.aclosing(client.watch(run.name)) as watch:
        states.append(await anext(watch))
        await services.indexer.stop()
        assert not states[-1].state.is_final
        await services.indexer.start()
        states += [state async for state in watch]

    assert states[-1].state is RunState.SUCCEEDED
    assert states[-1] == await client.run(run.name)


async def test_the_example_of_the_document_runs(
    services: Indexing, client: Lodestone, capsys: pytest.CaptureFixture[str]
) -> None:
    code = re.search(r"```python\n(.*?)```\n", _DOCUMENT.read_text("utf-8"), re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(code[1], str(_DOCUMENT), "exec"), names)  # the document's own code

    await names["main"](_address(services))

    printed = capsys.readouterr().out
    assert printed.startswith("succeeded ")
    assert "parse_body fresh" in printed
    assert "NOT_FOUND" in printed


async def test_signatures_alone_and_what_moved_come_when_asked_for(
    client: Lodestone, roots: Path
) -> None:
    """Red when a signature comes with its body, or a hit that moved is told as it was indexed."""
    first = await client.index()
    whole = await client.search("parse_body json")
    heads = await client.search("parse_body json", signatures=True)
    wanted = next(hit for hit in whole.hits if hit.name == "parse_body")
    head = next(hit for hit in heads.hits if hit.node_id == wanted.node_id)

    assert [hit.node_id for hit in heads.hits] == [hit.node_id for hit in whole.hits]
    assert head.is_signature
    assert not wanted.is_signature
    assert head.text.startswith("def parse_body(")
    assert head.text.endswith(":")
    assert wanted.text.startswith(head.text)
    assert len(wanted.text) > len(head.text)

    path = roots / "tree" / wanted.path
    path.write_text("# one more line\n" + path.read_text("utf-8"), encoding="utf-8")
    moved = await client.search("parse_body json", signatures=True, verify=True)
    found = next(hit for hit in moved.hits if hit.node_id == wanted.node_id)

    assert found.freshness is Freshness.MOVED
    assert found.start_line == wanted.start_line + 1
    assert found.text == head.text

    (roots / "tree" / "later.py").write_text("def later():\n    return 1\n", encoding="utf-8")
    second = await client.index()
    only = Filter(changed_since=second.name)
    # What moved has the form that it had.
    assert {hit.path for hit in (await client.search("later", only=only)).hits} == {"later.py"}
    everything = await client.search("later", only=Filter(changed_since=first.name))
    assert {hit.path for hit in everything.hits} > {"later.py", wanted.path}
