"""What a batch commits is right though something else changed between its claim and its commit."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from services.indexer.search.terms import name_terms
from services.indexer.storage import nodes as nodes_module
from services.indexer.storage.cache import fill_cache
from tests.integration.replicas import (
    content,
    parsed_file,
    parsed_node,
    workspace_with_model,
)
from tests.support.invariants import broken_rules

if TYPE_CHECKING:
    from services.indexer.model import ClaimedNode, RegisteredModel
    from services.indexer.run import Run
    from services.indexer.storage.database import Database
    from tests.integration.replicas import Replica

_RENAMED = replace(parsed_file("a.py", "a"), nodes=(parsed_node("a", name="Renamed.a"),))
_NAMES = "SELECT string_to_array(string_agg(array_to_string(name_terms, ' '), ' '), ' ') FROM "


async def _claim(stores: Replica) -> tuple[Run, RegisteredModel, list[ClaimedNode]]:
    """Returns a run that has claimed the one node of a file."""
    workspace, model = await workspace_with_model(stores)
    await stores.queue(workspace)
    run = await stores.take()
    await stores.apply(run, model, parsed_file("a.py", "a"))
    return run, model, await stores.nodes.claim(run, 9)


async def _fill_cache(stores: Replica, model: RegisteredModel, claimed: list[ClaimedNode]) -> None:
    """Does what another workspace's run does that embeds the same text."""
    text = claimed[0].content_hash
    async with stores.database.transaction() as connection:
        await fill_cache(connection, model.id, {text: content(text)})


@pytest.mark.parametrize("table", ["embedding_cache", "content_terms"])
async def test_a_text_that_is_forgotten_before_the_commit_is_cached_again(
    one: Replica, database: Database, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    """A repair of another workspace forgets the text that this batch found cached.

    Red when the batch does not count its vectors: a node was embedded and had none (I2, X3).
    """
    run, model, claimed = await _claim(one)
    await _fill_cache(one, model, claimed)
    forgotten: list[bool] = []

    async def fill_and_lose(*arguments: Any) -> None:
        await fill_cache(*arguments)
        if not forgotten:
            forgotten.append(await one.value(f"DELETE FROM {table} RETURNING true"))

    monkeypatch.setattr(nodes_module, "fill_cache", fill_and_lose)
    ended = await one.complete(run, model, claimed)
    await one.ledger.finish(run, None)

    assert (forgotten, ended) == ([True], 1)
    assert await broken_rules(database._url) == []


async def test_a_node_that_is_renamed_in_work_is_found_by_its_new_name(
    one: Replica, database: Database
) -> None:
    """Its file is parsed again in the same run, and its text, which is in the model, is the same.

    Red when the claim holds on: the batch committed the terms of the old name, for good.
    """
    run, model, claimed = await _claim(one)
    await one.apply(run, model, _RENAMED)

    assert await one.complete(run, model, claimed) == 0
    (again,) = await one.nodes.claim(run, 9)
    assert (again.attempt, again.qualified_name) == (1, "Renamed.a")
    assert await one.nodes.adopt(run, model.id, [again]) == set()
    await one.ledger.finish(run, None)

    assert tuple(await one.value(f"{_NAMES} node_terms")) == name_terms("a.py", "Renamed.a")
    assert await broken_rules(database._url) == []


async def test_a_claim_that_was_taken_back_gets_nothing_from_the_cache(one: Replica) -> None:
    """Red when whatever waits is given the vector: it came with the terms of the old name."""
    run, model, claimed = await _claim(one)
    await one.apply(run, model, _RENAMED)
    await _fill_cache(one, model, claimed)

    await one.nodes.adopt(run, model.id, claimed)

    assert await one.value("SELECT status FROM nodes") == "pending"


async def test_a_node_that_is_moved_in_work_stays_in_work(one: Replica) -> None:
    """Red when each claim on a file that is parsed again is taken back: the forward was lost."""
    run, model, claimed = await _claim(one)
    moved = replace(parsed_file("a.py", "a"), nodes=(parsed_node("a", start=40),))
    await one.apply(run, model, moved)

    assert await one.complete(run, model, claimed) == 1
