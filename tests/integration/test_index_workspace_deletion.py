"""A workspace goes with all that it has, whatever else is going on in it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY

from services.indexer.model import Tree
from services.indexer.storage.partitions import add_partition, vectors_table
from services.indexer.storage.queue_admin import ALL_WORKSPACES, QueueAdmin
from services.indexer.storage.queue_depth import QueueDepth
from tests.integration.replicas import MODEL, replica, until_waiting
from tests.support.invariants import broken_rules

if TYPE_CHECKING:
    from services.indexer.storage.database import Database

_HELD = "lodestone_indexer_queue_holds"


async def test_a_workspace_deleted_while_its_first_run_begins_leaves_no_partition(
    database: Database,
) -> None:
    """The run activates its model, and so makes a partition, in a transaction that is open.

    Red when the deletion drops partitions before it has the workspace to itself (I6).
    """
    one = replica(database)
    model = await one.workspaces.register_model(MODEL)
    workspace, _ = await one.workspaces.create("doomed", Tree("roots/trees", "doomed"), "")
    async with database.transaction() as connection:
        await connection.execute("SELECT FROM workspaces WHERE name = 'doomed' FOR NO KEY UPDATE")
        deleting = asyncio.create_task(one.workspaces.delete("doomed"))
        await until_waiting(one.value)
        await add_partition(connection, vectors_table(model.id), workspace.id)
    await deleting

    assert await broken_rules(database._url) == []
    assert await one.value("SELECT count(*) FROM workspaces") == 0


async def test_a_workspace_that_is_held_takes_its_holds_along(database: Database) -> None:
    """Red when they stay: the gauge told of a queue that is held, for ever."""
    one = replica(database)
    admin, depth = QueueAdmin(database), QueueDepth(database)
    tree = Tree("roots/trees", "held")
    held, _ = await one.workspaces.create("held", tree, "")
    other, _ = await one.workspaces.create("other", tree, "")
    for workspace in (held, other):
        await admin.pause(workspace.id)
        await admin.begin_import(workspace.id, 60)
    await admin.pause(ALL_WORKSPACES)
    await depth.look()
    before = REGISTRY.get_sample_value(_HELD)

    await one.workspaces.delete("held")
    await admin.pause(held.id)  # a call that found the workspace before
    await depth.look()

    assert (before, REGISTRY.get_sample_value(_HELD)) == (5, 3)
    assert await one.value("SELECT count(*) FROM queue_holds WHERE kind = 'bulk_import'") == 1
