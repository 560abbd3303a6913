"""An answer is whole: of one generation of each file, and as long as was asked for."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest

from lodestone.indexer.v1 import search_service_pb2 as search_pb2
from tests.integration.hooks import Hook
from tests.integration.indexing import indexing
from tests.integration.samples import write_many

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.integration.indexing import Indexing

pytestmark = pytest.mark.timeout(120)


class _HeldQuestions(Hook):
    """Holds up the vector of a question, and of nothing else."""

    def __init__(self, question: str) -> None:
        super().__init__()
        self.asked = asyncio.Event()
        self.answer = asyncio.Event()
        self._question = question

    async def before(self, texts: Sequence[str], context: Any) -> None:
        if list(texts) == [self._question]:
            self.asked.set()
            await self.answer.wait()


async def test_a_run_that_commits_while_a_search_waits_leaves_one_generation(
    roots: Path, sockets: Path, migrated_url: str
) -> None:
    """The lexical arm ends at once, the other waits for the model, and a file changes meanwhile.

    Red when what an arm found is looked up as soon as that arm has ended.
    """

    def write(generation: int) -> None:
        names = [f"canary_{generation}_{number}" for number in range(5)]
        text = "\n\n".join(f"def {name}():\n    return 'canary'\n" for name in names)
        (roots / "tree" / "churn.py").write_text(text, encoding="utf-8")

    write_many(roots / "tree", 4)
    write(0)
    hook = _HeldQuestions("canary")
    async with indexing(roots, sockets, migrated_url, embed=hook.app) as services:
        await services.create("tree", "tree")
        await services.succeed("tree")
        searching = asyncio.create_task(services.search("tree", "canary", k=50))
        await hook.asked.wait()
        await asyncio.sleep(0.3)  # the other arms have ended
        write(1)
        await services.succeed("tree")
        hook.answer.set()

        found = [hit for hit in await searching if hit.path == "churn.py"]

    assert {hit.qualified_name for hit in found} == {f"canary_1_{number}" for number in range(5)}
    assert len({hit.file_digest for hit in found}) == 1


async def test_what_a_run_renames_while_a_search_waits_is_held_to_the_filter_again(
    roots: Path, sockets: Path, migrated_url: str
) -> None:
    """A method stays the same node when its class is called otherwise, also between two pages.

    Red when a filter is held against what the arms read alone.
    """
    file = roots / "tree" / "box.py"

    def write(name: str) -> None:
        methods = "".join(
            f"\n    def canary_{number}(self):\n        return {number}\n" for number in range(3)
        )
        file.write_text(f"class {name}:\n{methods}", encoding="utf-8")

    def request(token: str = "") -> search_pb2.SearchNodesRequest:
        only = search_pb2.SearchFilter(symbols=[f"Old.canary_{number}" for number in range(3)])
        return search_pb2.SearchNodesRequest(
            parent="workspaces/tree", query="canary", filter=only, page_size=2, page_token=token
        )

    write_many(roots / "tree", 4)
    write("Old")
    hook = _HeldQuestions("canary")
    async with indexing(roots, sockets, migrated_url, embed=hook.app) as services:
        await services.create("tree", "tree")
        await services.succeed("tree")
        hook.answer.set()
        first = await services.searches.SearchNodes(request())
        hook.answer.clear()
        hook.asked.clear()
        searching = asyncio.ensure_future(services.searches.SearchNodes(request()))
        await hook.asked.wait()
        await asyncio.sleep(0.3)  # the other arms have ended
        write("New")
        await services.succeed("tree")
        hook.answer.set()

        held = await searching
        later = await services.searches.SearchNodes(request(first.next_page_token))
        now = await services.search("tree", "canary", k=50)

    assert len(first.hits) == 2
    assert {hit.node_id for hit in now} >= {hit.node_id for hit in first.hits}
    assert [hit.qualified_name for hit in held.hits] == []
    assert [hit.qualified_name for hit in later.hits] == []


@pytest.mark.parametrize("verify", [False, True])
async def test_a_page_of_many_texts_leaves_the_loop_to_others(
    services: Indexing, roots: Path, *, verify: bool
) -> None:
    """Runs beat their leases there. The time is of the loop's own thread, whatever else runs.

    Red when all texts of a page are looked through in one go.
    """
    lines = [
        f"  value_{number} = method_{number}(value, {number} * total)" for number in range(700)
    ]
    (roots / "tree").mkdir()
    for number in range(20):
        text = "\n".join([f"page {number}", *lines])
        (roots / "tree" / f"page_{number}.txt").write_text(text, encoding="utf-8")
    await services.create("tree", "tree")
    await services.succeed("tree")
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            before = time.thread_time()
            await asyncio.sleep(0)
            longest = max(longest, time.thread_time() - before)

    ticking = asyncio.create_task(tick())
    response = await services.searches.SearchNodes(
        search_pb2.SearchNodesRequest(
            parent="workspaces/tree", query="launch", page_size=1000, with_text=True, verify=verify
        )
    )
    ticking.cancel()

    assert sum(len(hit.text) for hit in response.hits) > 500_000
    assert longest < 0.06


async def test_a_page_has_as_many_hits_as_were_asked_for_where_there_are_as_many(
    services: Indexing, roots: Path
) -> None:
    """Red when an answer ends with what the arms hand on to ranking: 300 nodes each."""
    write_many(roots / "tree", 1100, per_file=11)
    await services.create("tree", "tree")
    await services.succeed("tree")
    only = search_pb2.SearchFilter(languages=["python"], kinds=["function"])

    response = await services.searches.SearchNodes(
        search_pb2.SearchNodesRequest(
            parent="workspaces/tree", query="value", page_size=1000, filter=only
        )
    )

    assert len(response.hits) == 1000
    assert len({hit.node_id for hit in response.hits}) == 1000
