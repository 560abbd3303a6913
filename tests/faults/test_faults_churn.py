"""F13: the tree is edited while it is indexed and searched, by two replicas; seeded.

Texts repeat in many files, files are renamed, copied and deleted, and each edit is told to the
index by a run of its own, while a searcher reads all the time.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.faults.cluster import Cluster, caller
from tests.faults.conftest import FEW_SEEDS
from tests.faults.trees import Editor, write_generated
from tests.faults.truth import check_truth

if TYPE_CHECKING:
    from lodestone.indexer.v1 import search_service_pb2 as search_pb2
    from tests.faults.cluster import Caller

_ROUNDS = 6
_EDITS_PER_ROUND = 5
_OK = {"succeeded", "succeeded_with_warnings"}


@pytest.mark.parametrize("seed", range(FEW_SEEDS))
async def test_edits_searches_and_runs_at_once_end_as_the_tree(cluster: Cluster, seed: int) -> None:
    """I2 and I3: no hit shows bytes that its file did not hold at that time.

    Red on planted bugs: a file that changed under the run is not planned again; nodes of a file
    that is gone stay.
    """
    name = f"churn-{seed}"
    folder = write_generated(cluster.roots / name, name, files=16, functions=6)
    async with caller(cluster) as calls:
        await calls.create(name, name)
        assert (await calls.run(name))["state"] == "succeeded"
        editor = Editor(folder, name)
        searching = asyncio.create_task(_search_on(calls, name, editor))
        for _ in range(_ROUNDS):
            run = await calls.begin(name)
            for _ in range(_EDITS_PER_ROUND):
                await asyncio.to_thread(editor.step)
                await asyncio.sleep(0.01)
            ended = await calls.wait(run)
            assert ended["state"] in _OK, dict(ended)
        searching.cancel()
        searches = (await asyncio.gather(searching, return_exceptions=True))[0]
        assert isinstance(searches, asyncio.CancelledError), searches
        last = await calls.run(name)
        hits = await calls.search(name, "adds total value", k=50)

    assert last["state"] == "succeeded", dict(last)
    assert hits
    for hit in hits:
        _check(hit, editor)
        assert hit.text
    await check_truth(cluster, name, name)


async def _search_on(calls: Caller, name: str, editor: Editor) -> None:
    """Searches until it is cancelled."""
    number = 0
    while True:
        number += 1
        for hit in await calls.search(name, f"work {number % 50} total value", k=10):
            _check(hit, editor)
        await asyncio.sleep(0)


def _check(hit: search_pb2.NodeHit, editor: Editor) -> None:
    """A hit is of a content that its path has had, and its text is that of its range."""
    content = editor.history.get((hit.path, hit.file_digest))
    assert content is not None, (hit.path, hit.file_digest.hex())
    if hit.text:
        assert hit.text.encode() == content[hit.start_byte : hit.end_byte], hit.path
