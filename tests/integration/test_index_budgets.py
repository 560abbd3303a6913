"""A file or text that takes too long ends as timed out, and the run goes on without it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from lodestone.indexer.v1 import index_run_service_pb2 as runs_pb2
from services.io.servicers.parse import ParseServicer
from services.io.servicers.snippets import SnippetServicer
from tests.integration.hooks import Hook
from tests.integration.indexing import Mode, State, indexing
from tests.integration.oracle import broken_rules, check
from tests.integration.samples import write_many

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.integration.indexing import Indexing

_RESULT = runs_pb2.Outcome.Result


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Paths that io never answers for: `parse x` and `fetch x`."""
    paths: set[str] = set()
    parse, fetch = ParseServicer.ParseFiles, SnippetServicer.ReadContents

    async def parse_files(self: Any, request: Any, context: Any) -> AsyncIterator[Any]:
        if any(f"parse {file.path}" in paths for file in request.files):
            await asyncio.Event().wait()
        async for response in parse(self, request, context):
            yield response

    async def read_contents(self: Any, request: Any, context: Any) -> Any:
        if any(f"fetch {ref.path}" in paths for ref in request.refs):
            await asyncio.Event().wait()
        return await fetch(self, request, context)

    monkeypatch.setattr(ParseServicer, "ParseFiles", parse_files)
    monkeypatch.setattr(SnippetServicer, "ReadContents", read_contents)
    yield paths
    paths.clear()


@asynccontextmanager
async def _services(
    roots: Path, sockets: Path, url: str, **settings: Any
) -> AsyncIterator[Indexing]:
    write_many(roots / "tree", 12, per_file=3)
    async with indexing(roots, sockets, url, **settings) as services:
        await services.create("tree", "tree")
        yield services


@pytest.mark.parametrize(
    ("stage", "entity", "setting"),
    [("parse", "file", "parse_budget_seconds"), ("fetch", "node", "fetch_budget_seconds")],
)
async def test_what_io_does_not_answer_for_times_out_alone(
    *,
    roots: Path,
    sockets: Path,
    migrated_url: str,
    stuck: set[str],
    stage: str,
    entity: str,
    setting: str,
) -> None:
    """Red when a deadline is a service that is away: the run waited, and failed as a whole.

    Also red when what failed is told without the time that was spent on it.
    """
    stuck.add(f"{stage} part_000003.py")
    async with _services(roots, sockets, migrated_url, **{setting: 0.3}) as services:
        run = await services.run("tree")
        outcomes = await services.failures(run)
        stuck.clear()

        assert run.state == State.STATE_SUCCEEDED_WITH_WARNINGS
        assert {(item.path, item.stage, item.result) for item in outcomes} == {
            ("part_000003.py", stage, _RESULT.RESULT_TIMEOUT)
        }
        assert len(outcomes) == (1 if entity == "file" else 3)
        assert all(item.duration.ToNanoseconds() > 0 for item in outcomes)
        assert run.progress.nodes_embedded == 9
        assert await broken_rules(services.url) == []
        await services.run("tree", Mode.MODE_FULL)
        await check(services, "tree", "tree")


async def test_a_text_that_holds_up_the_model_times_out_alone(
    roots: Path, sockets: Path, migrated_url: str
) -> None:
    hook = Hook()

    async def before(texts: list[str], _context: Any) -> None:
        hook.calls.append(texts)
        if any("work_5(" in text for text in texts):
            await asyncio.Event().wait()

    hook.before = before  # type: ignore[assignment, method-assign]
    async with _services(
        roots, sockets, migrated_url, embed=hook.app, embed_timeout_seconds=0.5
    ) as services:
        run = await services.run("tree")
        (outcome,) = await services.failures(run)

        assert run.state == State.STATE_SUCCEEDED_WITH_WARNINGS
        assert (outcome.qualified_name, outcome.result) == ("work_5", _RESULT.RESULT_TIMEOUT)
        assert run.progress.nodes_embedded == 11
