"""Who watches a live workspace: one replica, by the database's clock, under a fence."""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING

import asyncpg
import pytest

from lodestone.indexer.v1 import workspace_service_pb2 as workspaces_pb2
from lodestone.io.v1 import tree_pb2
from services.indexer.errors import LeaseLostError
from services.indexer.model import WatchState
from services.indexer.run import RunMode
from services.indexer.run_spec import IfRunning, RunPriority, RunSpec, RunTrigger
from services.indexer.servicers import WorkspaceServicer
from services.indexer.storage.watches import LOOK_WAITS, TAKE, WHOLE_UNFINISHED, WatchStore
from services.runtime.errors import StateConflictError
from tests.integration.replicas import MODEL, workspace_with_model

if TYPE_CHECKING:
    from services.indexer.storage.database import Database
    from services.indexer.storage.watches import Watch
    from tests.integration.replicas import Replica

_LEASE_SECONDS = 0.5
_SECOND = replace(MODEL, name="models/second", fingerprint="a" * 64)
_CHANGED = RunSpec(
    RunMode.SCOPED,
    paths=("a.py",),
    priority=RunPriority.LIVE,
    trigger=RunTrigger.CHANGES,
    change_age_seconds=1.5,
)


def _watches(database: Database, lease_seconds: float = 30.0) -> WatchStore:
    return WatchStore(database, uuid.uuid4(), lease_seconds)


async def _live(stores: Replica, name: str = "tree") -> None:
    await workspace_with_model(stores, name)
    await stores.workspaces.update(name, live=True, display_name=None)


async def _queue(watches: WatchStore, watch: Watch, stores: Replica, token: str = "t") -> uuid.UUID:
    return (await watches.queue_run(watch, stores.ledger, uuid.uuid4(), _CHANGED, token)).id


async def _take_after_lease(watches: WatchStore) -> Watch:
    deadline = time.monotonic() + 5
    while not (taken := await watches.take(1)):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    return taken[0]


async def test_many_replicas_take_each_workspace_once(one: Replica, database: Database) -> None:
    """Red without the lock of the rows that are taken."""
    for number in range(6):
        await _live(one, f"tree-{number}")

    taken = await asyncio.gather(*(_watches(database).take(2) for _ in range(12)))

    names = [watch.workspace_name for watches in taken for watch in watches]
    assert sorted(names) == sorted(set(names))
    rest = await _watches(database).take(10)
    assert len(names) + len(rest) == 6


async def test_only_live_workspaces_are_taken(one: Replica, database: Database) -> None:
    await workspace_with_model(one, "quiet")
    await _live(one)
    watches = _watches(database)

    (watch,) = await watches.take(10)

    assert watch.workspace_name == "tree"
    await one.workspaces.update("tree", live=False, display_name=None)
    assert await watches.beat([watch]) == set()
    with pytest.raises(LeaseLostError):
        await _queue(watches, watch, one)


async def test_a_workspace_is_made_live_at_once_or_not_at_all(
    one: Replica, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red with a second transaction: who was stopped before it asked again, and was told "done"."""
    request = workspaces_pb2.CreateWorkspaceRequest(
        workspace_id="tree",
        workspace=workspaces_pb2.Workspace(
            tree=tree_pb2.Tree(root="roots/trees", directory="tree"), live=True
        ),
    )

    async def break_off() -> None:
        raise ConnectionError

    monkeypatch.setattr(one.workspaces, "update", lambda *_, **__: break_off())
    told: list[bool] = []
    servicer = WorkspaceServicer(one.workspaces, lambda: told.append(True))
    created = await servicer.CreateWorkspace(request, None)
    again = await servicer.CreateWorkspace(request, None)

    assert (created.created, again.created, again.workspace.live) == (True, False, True)
    assert told == [True]
    assert len(await _watches(database).take(9)) == 1


async def test_a_lease_that_is_prolonged_is_not_taken(one: Replica, database: Database) -> None:
    await _live(one)
    holder, other = _watches(database, _LEASE_SECONDS), _watches(database)
    (watch,) = await holder.take(1)
    deadline = time.monotonic() + 2 * _LEASE_SECONDS

    while time.monotonic() < deadline:
        assert await holder.beat([watch]) == {(watch.workspace_id, watch.fence)}
        assert await other.take(1) == []
        await asyncio.sleep(0.05)


async def test_another_takes_over_after_the_lease_and_where_the_dead_one_was(
    one: Replica, database: Database
) -> None:
    """Red with the token of a batch that is written before its run is queued."""
    await _live(one)
    dead = _watches(database, _LEASE_SECONDS)
    (first,) = await dead.take(1)
    run = await _queue(dead, first, one, "up to here")
    started = time.monotonic()

    second = await _take_after_lease(_watches(database))

    assert time.monotonic() - started < _LEASE_SECONDS + 1
    assert second.fence > first.fence
    assert (second.resume_token, second.last_run) == ("up to here", run)


async def test_a_watcher_that_wakes_up_late_queues_and_writes_nothing(
    one: Replica, database: Database
) -> None:
    """Red without the fence in the statements of a watch.

    A zombie would move the token on, and what its successor was told in between is in no run.
    """
    await _live(one)
    frozen = _watches(database, _LEASE_SECONDS)
    (old,) = await frozen.take(1)
    watches = _watches(database)
    new = await _take_after_lease(watches)
    await watches.set_state(new, WatchState.WATCHING)
    runs = await one.value("SELECT count(*) FROM runs")

    assert await frozen.beat([old]) == set()
    with pytest.raises(LeaseLostError):
        await _queue(frozen, old, one, "too far")
    await frozen.set_state(old, WatchState.TREE_MISSING)
    await frozen.forget_token(old)
    await frozen.release(old)

    assert await one.value("SELECT count(*) FROM runs") == runs
    row = await one.value(
        "SELECT (fence, state, resume_token, owner IS NULL)::text FROM workspace_watches"
    )
    assert row == f'({new.fence},watching,"",f)'


async def test_a_watch_that_is_given_back_is_taken_at_once(
    one: Replica, database: Database
) -> None:
    await _live(one)
    first = _watches(database)
    (watch,) = await first.take(1)

    await first.release(watch)

    assert len(await _watches(database).take(1)) == 1


async def test_how_fresh_the_index_is_is_told_by_the_database_alone(
    one: Replica, database: Database
) -> None:
    await _live(one)
    watches = _watches(database)
    (watch,) = await watches.take(1)
    await _queue(watches, watch, one)
    run = await one.take()
    await one.ledger.finish(run, None)

    await watches.note_end(watch, await one.ledger.get("tree", run.id))

    status = (await one.workspaces.get("tree")).watch
    assert status is not None
    assert status.freshness_seconds is not None
    assert 1.5 <= status.freshness_seconds < 10
    assert status.reconciled_at is None
    assert status.state is WatchState.WAITING


async def test_a_lease_that_is_over_shows_as_one_that_nobody_has(
    one: Replica, database: Database
) -> None:
    await _live(one)
    watches = _watches(database, _LEASE_SECONDS)
    (watch,) = await watches.take(1)
    await watches.set_state(watch, WatchState.WATCHING)
    before = (await one.workspaces.get("tree")).watch
    await asyncio.sleep(_LEASE_SECONDS + 0.1)

    after = (await one.workspaces.get("tree")).watch

    assert before is not None
    assert after is not None
    assert (before.state, after.state) == (WatchState.WATCHING, WatchState.WAITING)


async def test_the_run_of_a_watcher_is_joined_by_nobody_and_fails_nobody(
    one: Replica, database: Database
) -> None:
    """X7. Red when a user's `index` follows a run over one file and calls that the index."""
    await _live(one)
    watches = _watches(database)
    (watch,) = await watches.take(1)
    changes = await _queue(watches, watch, one)
    workspace = await one.workspaces.get("tree")

    alone = await one.queue(workspace, if_running=IfRunning.FAIL)
    joined = await one.queue(workspace, if_running=IfRunning.JOIN)

    assert alone.id != changes
    assert joined.id == alone.id
    with pytest.raises(StateConflictError):
        await one.queue(workspace, if_running=IfRunning.FAIL)


async def test_a_watchers_run_goes_after_a_users_and_before_bulk(
    one: Replica, database: Database
) -> None:
    """Q7. Red with a watcher's run in the background."""
    await _live(one)
    watches = _watches(database)
    (watch,) = await watches.take(1)
    workspace = await one.workspaces.get("tree")
    bulk = await one.queue(workspace)
    live = await _queue(watches, watch, one)
    user = await one.queue(
        workspace, RunMode.SCOPED, IfRunning.QUEUE, paths=("b",), priority=RunPriority.INTERACTIVE
    )

    order = []
    for _ in range(3):
        run = await one.take()
        order.append(run.id)
        await one.ledger.finish(run, None)

    assert order == [user.id, live, bulk.id]


async def test_a_run_over_the_workspace_that_waits_is_seen(
    one: Replica, database: Database
) -> None:
    await _live(one)
    watches = _watches(database)
    (watch,) = await watches.take(1)
    changes = await _queue(watches, watch, one)
    assert not await watches.has_whole_run(watch, changes)
    assert not await watches.look_waits(watch)

    bulk = await one.queue(await one.workspaces.get("tree"))

    assert await watches.has_whole_run(watch, changes)
    assert not await watches.has_whole_run(watch, bulk.id)
    assert await watches.look_waits(watch)
    await one.ledger.request_pause(bulk)
    await one.queue(await one.workspaces.get("tree"), if_running=IfRunning.QUEUE)
    assert not await watches.has_whole_run(watch, changes), "none can be taken before the pause"
    assert await watches.look_waits(watch)


async def test_a_look_goes_before_a_run_of_a_model_and_waits_behind_a_paused_run_alone(
    one: Replica, database: Database
) -> None:
    """Red when such a run, which takes hours, counts as one that looks through the tree as well.

    And when the watcher rests for it, up to a minute after each change: it waits anyway, and loses
    no work when it gives way.
    """
    await _live(one)
    watches = _watches(database)
    (watch,) = await watches.take(1)
    workspace = await one.workspaces.get("tree")
    second = await one.workspaces.register_model(_SECOND)
    await one.models.add(workspace, second)
    run = await one.take()
    assert run.model_id == second.id

    assert not await watches.look_waits(watch)
    assert not await watches.has_whole_run(watch, uuid.uuid4())
    spec = RunSpec(priority=RunPriority.BACKGROUND, trigger=RunTrigger.RECONCILE)
    look = await watches.queue_run(watch, one.ledger, uuid.uuid4(), spec, "t")
    assert (await one.ledger.beat(run)).give_way
    await one.ledger.release(run)
    assert (await one.take()).id == look.id
    await one.ledger.finish(await one.ledger.get("tree", look.id), None)

    scoped = await one.queue(workspace, RunMode.SCOPED, IfRunning.QUEUE, paths=("a",))
    await one.ledger.request_pause(scoped)
    assert await watches.look_waits(watch)


async def test_taking_watches_and_looking_for_runs_walk_indexes(
    one: Replica, database: Database, migrated_url: str
) -> None:
    """On 5,000 live workspaces and 5,000 runs, neither reads a whole table."""
    await workspace_with_model(one)
    connection = await asyncpg.connect(migrated_url)
    await connection.execute(
        """
        INSERT INTO workspaces (name, root, directory, live)
        SELECT 'tree-' || i, 'roots/a', '', true FROM generate_series(1, 5000) i;
        INSERT INTO workspace_watches (workspace_id, owner, lease_until)
        SELECT id, gen_random_uuid(), now() + interval '1 hour' FROM workspaces WHERE live;
        INSERT INTO runs (workspace_id, request_id, request_digest, mode, state, finished_at)
        SELECT 1, gen_random_uuid(), '', 'full', 'succeeded', now()
        FROM generate_series(1, 5000);
        ANALYZE
        """
    )

    for sql, arguments in (
        (TAKE, (uuid.uuid4(), 5.0, 16)),
        (WHOLE_UNFINISHED, (1, uuid.uuid4())),
        (LOOK_WAITS, (1,)),
    ):
        rows = await connection.fetch(f"EXPLAIN {sql}", *arguments)
        plan = "\n".join(row[0] for row in rows)
        assert "Seq Scan on workspace_watches" not in plan, plan
        assert "Seq Scan on runs" not in plan, plan
        assert "Seq Scan on workspaces" not in plan, plan
    await connection.close()
