"""A check that marks while a repair takes marks up: each is repaired, or stays."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from services.indexer.run import RunMode
from services.indexer.storage import marks as marks_module
from services.indexer.storage.marks import Disagreement, Mark, MarkStore
from services.indexer.storage.term_changes import note_changed
from services.runtime.errors import NotFoundError
from tests.integration.replicas import Replica, parsed_file, until_waiting, workspace_with_model
from tests.support.invariants import broken_rules

if TYPE_CHECKING:
    from services.indexer.model import RegisteredModel, Workspace
    from services.indexer.storage.database import Database

_NODE = "SELECT id FROM nodes WHERE qualified_name = $1"


async def _embedded(stores: Replica) -> tuple[Workspace, RegisteredModel]:
    workspace, model = await workspace_with_model(stores)
    await stores.queue(workspace)
    run = await stores.take()
    await stores.apply(run, model, parsed_file("a.py", "a", "b"))
    await stores.complete(run, model, await stores.nodes.claim(run, 9))
    await stores.ledger.finish(run, None)
    return workspace, model


async def test_a_node_that_is_marked_while_others_are_put_back_stays_marked(
    one: Replica, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red when marks are cleared that came after those that were read."""
    workspace, model = await _embedded(one)
    marks = MarkStore(database)
    first, second = [
        Mark("a.py", Disagreement.TERMS_WRONG, await one.value(_NODE, name), name)
        for name in ("a", "b")
    ]
    await marks.mark(workspace.id, [first])
    late: list[asyncio.Task[None]] = []

    async def note_and_mark(*arguments: Any) -> None:
        await note_changed(*arguments)
        late.append(asyncio.create_task(marks.mark(workspace.id, [second])))
        await until_waiting(one.value, unless=late[0].done)

    monkeypatch.setattr(marks_module, "note_changed", note_and_mark)
    await one.queue(workspace, RunMode.REPAIR)
    run = await one.take()
    await one.ledger.put_back_marked(run, model.id)
    await late[0]

    assert await one.value("SELECT array_agg(node_id) FROM index_marks") == [second.node_id]
    await one.complete(run, model, await one.nodes.claim(run, 9))
    await one.ledger.finish(run, None)
    assert await broken_rules(database._url) == []


async def test_a_file_that_is_marked_again_after_it_was_looked_at_stays_marked(
    one: Replica, database: Database
) -> None:
    """It changed once more behind the repair's back. Red when its mark is cleared by its path."""
    workspace, _ = await _embedded(one)
    marks = MarkStore(database)
    changed = [Mark(path, Disagreement.FILE_CHANGED) for path in ("a.py", "b.py")]
    await marks.mark(workspace.id, changed)
    found, _ = await marks.marked_files(workspace.id)

    await marks.mark(workspace.id, changed[:1])
    await marks.clear_files(workspace.id, found)

    assert await one.value("SELECT array_agg(path) FROM index_marks") == ["a.py"]


async def test_marks_of_a_workspace_that_was_deleted_meanwhile_are_told_so(
    one: Replica, database: Database
) -> None:
    """Red when a foreign key tells it, which no caller of a check understands."""
    workspace, _ = await _embedded(one)
    await one.workspaces.delete("tree")

    with pytest.raises(NotFoundError):
        await MarkStore(database).mark(workspace.id, [Mark("a.py", Disagreement.FILE_CHANGED)])
