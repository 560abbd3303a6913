"""A live workspace: what changes in its tree is searched soon, without anybody asking."""

from __future__ import annotations

import asyncio
import shutil
import time
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from prometheus_client import REGISTRY

from lodestone.indexer.v1 import index_run_service_pb2 as runs_pb2
from lodestone.indexer.v1 import workspace_service_pb2 as workspaces_pb2
from tests.integration.hooks import Hook
from tests.integration.indexing import FINISHED, Mode, State, indexing
from tests.integration.oracle import check
from tests.support.live import caught_up

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from tests.integration.indexing import Indexing

_RUN = runs_pb2.IndexRun
_WATCH = workspaces_pb2.WatchStatus


def _work(name: str, number: int = 1) -> str:
    return f'def {name}(value):\n    """Adds {number}."""\n    return value + {number}\n'


@pytest.fixture
def tree(roots: Path) -> Path:
    """A small tree of Python files in two folders."""
    folder = roots / "tree"
    for number in range(8):
        path = folder / f"package_{number % 2}" / f"part_{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_work(f"work_{number}", number), encoding="utf-8")
    return folder


@pytest.fixture
async def live(
    tree: Path, roots: Path, sockets: Path, migrated_url: str
) -> AsyncIterator[Indexing]:
    """All services, with the tree indexed and live."""
    async with indexing(
        roots, sockets, migrated_url, live_lease_seconds=1.0, live_max_paths=20
    ) as services:
        await services.create("tree", "tree")
        await services.set_live("tree")
        await caught_up(services.url, "tree", tree)
        await _until_idle(services)
        yield services


async def _eventually(ask: Callable[[], Awaitable[Any]], timeout_seconds: float = 15.0) -> Any:
    """Returns the first answer that is true."""
    deadline = time.monotonic() + timeout_seconds
    while not (answer := await ask()):
        assert time.monotonic() < deadline, "not in time"
        await asyncio.sleep(0.02)
    return answer


async def _until_idle(services: Indexing) -> list[runs_pb2.IndexRun]:
    """Returns all runs, newest first, once none is left to end."""

    async def ended() -> list[runs_pb2.IndexRun]:
        runs = await services.list_runs("tree")
        return runs if all(run.state in FINISHED for run in runs) else []

    found: list[runs_pb2.IndexRun] = await _eventually(ended)
    return found


def _metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"lodestone_indexer_{name}", labels) or 0.0


def _events() -> float:
    """Returns how many changes of files io told, whatever they were."""
    name = "lodestone_indexer_live_events_total"
    return sum(s.value for m in REGISTRY.collect() for s in m.samples if s.name == name)


async def test_what_changes_is_searched_without_a_call(live: Indexing, tree: Path) -> None:
    """Red when a renamed file is looked at under its new path alone: the old one stays."""
    part = tree / "package_0" / "part_0.py"

    def save_by_rename() -> None:
        beside = part.with_name(".part_0.py.tmp")
        beside.write_text(_work("saved_by_rename"), encoding="utf-8")
        beside.rename(part)

    def save_with_a_backup() -> None:
        part.rename(part.with_suffix(".py~"))
        part.write_text(_work("saved_with_a_backup"), encoding="utf-8")
        part.with_suffix(".py~").unlink()

    steps: list[Callable[[], Any]] = [
        lambda: (tree / "new.py").write_text(_work("created"), encoding="utf-8"),
        lambda: (tree / "new.py").write_text(_work("edited"), encoding="utf-8"),
        lambda: (tree / "new.py").rename(tree / "package_1" / "moved.py"),
        (tree / "package_1" / "moved.py").unlink,
        save_by_rename,
        save_with_a_backup,
        lambda: (tree / "package_1").rename(tree / "package_2"),
        lambda: (tree / "package_0" / "star*[x].py").write_text(_work("odd"), encoding="utf-8"),
        lambda: shutil.rmtree(tree / "package_2"),
    ]
    for step in steps:
        step()
        await caught_up(live.url, "tree", tree)

    hits = await live.search("tree", "saved_with_a_backup")
    assert hits[0].qualified_name == "saved_with_a_backup"
    runs = await _until_idle(live)
    assert {run.state for run in runs} == {State.STATE_SUCCEEDED}
    await live.set_live("tree", live=False)
    await check(live, "tree", "tree")


async def test_an_edit_is_one_scoped_run_of_one_forward(live: Indexing, tree: Path) -> None:
    before = {run.name for run in await live.list_runs("tree")}
    counted = _metric("freshness_seconds_count")
    part = tree / "package_0" / "part_0.py"

    part.write_text(_work("work_0") + "\n\n" + _work("another", 77), encoding="utf-8")
    await caught_up(live.url, "tree", tree)
    (run,) = [item for item in await _until_idle(live) if item.name not in before]

    assert (run.mode, run.trigger) == (Mode.MODE_SCOPED, _RUN.TRIGGER_CHANGES)
    assert run.priority == _RUN.PRIORITY_LIVE
    assert list(run.paths) == ["package_0/part_0.py"]
    assert run.progress.forwards <= 2, "the function that is new, and the one that was edited"
    assert run.change_time.ToNanoseconds() < run.create_time.ToNanoseconds()

    async def fresh() -> workspaces_pb2.WatchStatus | None:
        status = await live.watch_status("tree")
        return status if status.HasField("freshness") else None

    status = await _eventually(fresh)
    assert status.state == _WATCH.STATE_WATCHING
    assert 0 < status.freshness.ToNanoseconds() / 1e9 < 10
    assert status.HasField("reconcile_time")
    assert _metric("freshness_seconds_count") == counted + 1


async def test_changes_that_come_while_a_run_works_are_one_run(
    tree: Path, roots: Path, sockets: Path, migrated_url: str
) -> None:
    """Red when each message of io queues a run."""
    hook = Hook()
    async with indexing(roots, sockets, migrated_url, embed=hook.app) as live:
        await live.create("tree", "tree")
        await live.set_live("tree")
        await caught_up(live.url, "tree", tree)
        before = {run.name for run in await _until_idle(live)}
        hook.hold()
        (tree / "first.py").write_text(_work("first"), encoding="utf-8")
        await hook.reached.wait()
        for number in range(10):
            (tree / f"later_{number}.py").write_text(_work(f"later_{number}"), encoding="utf-8")
            await asyncio.sleep(0.06)  # longer than io waits for quiet: ten messages
        hook.go_on.set()
        await caught_up(live.url, "tree", tree)
        runs = [run for run in await _until_idle(live) if run.name not in before]

    assert len(runs) == 2
    assert len(runs[0].paths) == 10


async def test_a_file_that_is_written_all_the_time_is_indexed(
    tree: Path, roots: Path, sockets: Path, migrated_url: str
) -> None:
    """Red with a debounce without its longest wait: no run before the writes end."""
    waits: dict[str, Any] = {"live_debounce_seconds": 1.0, "live_max_wait_seconds": 1.5}
    done = asyncio.Event()

    async def write() -> None:
        number = 0
        while not done.is_set():
            number += 1
            (tree / "log.py").write_text(_work("always", number), encoding="utf-8")
            await asyncio.sleep(0.3)

    async with indexing(roots, sockets, migrated_url, **waits) as live:
        await live.create("tree", "tree")
        await live.set_live("tree")
        await caught_up(live.url, "tree", tree)
        async with asyncio.TaskGroup() as group:
            group.create_task(write())

            async def found() -> bool:
                return bool(await live.search("tree", "always", paths=["log.py"]))

            await _eventually(found)
            done.set()
        await caught_up(live.url, "tree", tree)


async def test_many_changes_at_once_are_a_run_over_the_tree(live: Indexing, tree: Path) -> None:
    before = {run.name for run in await live.list_runs("tree")}
    for number in range(2000):
        path = tree / f"bulk_{number % 7}" / f"part_{number}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'"""Part {number}."""\n', encoding="utf-8")

    await caught_up(live.url, "tree", tree, timeout_seconds=60)

    runs = [run for run in await _until_idle(live) if run.name not in before]
    assert {run.trigger for run in runs} >= {_RUN.TRIGGER_RECONCILE}
    assert len(runs) < 20
    await live.set_live("tree", live=False)
    await check(live, "tree", "tree")


async def test_events_that_were_lost_are_counted_and_made_up_for(
    tree: Path, roots: Path, sockets: Path, migrated_url: str
) -> None:
    """F16. Red when a rescan is passed over: the next look comes minutes later."""
    few = {"watch_log_events": 100}
    async with indexing(roots, sockets, migrated_url, io_settings=few) as live:
        await live.create("tree", "tree")
        await live.set_live("tree")
        await caught_up(live.url, "tree", tree)
        await _until_idle(live)
        rescans = _metric("live_rescans_total")
        for number in range(500):
            (tree / f"burst_{number}.py").write_text(f'"""{number}."""\n', encoding="utf-8")

        await caught_up(live.url, "tree", tree)

        assert _metric("live_rescans_total") > rescans
        await live.set_live("tree", live=False)
        await check(live, "tree", "tree")


async def test_a_change_that_no_event_tells_is_found_by_the_next_look(
    tree: Path, roots: Path, sockets: Path, migrated_url: str
) -> None:
    """The kernel tells a folder nothing of writes to a file that was opened by a name elsewhere.

    Red when a watcher looks through the tree at its start and after lost events alone.
    """
    edited, aside = tree / "package_0" / "part_0.py", roots / "aside.py"
    aside.hardlink_to(edited)
    often: dict[str, Any] = {"live_reconcile_seconds": 1.0}
    with aside.open("r+b") as opened:
        aside.unlink()
        async with indexing(roots, sockets, migrated_url, **often) as live:
            await live.create("tree", "tree")
            await live.set_live("tree")
            await caught_up(live.url, "tree", tree)
            await _until_idle(live)
            told = _events(), _metric("live_rescans_total")
            opened.write(_work("written_aside_").encode())
            opened.truncate()
            opened.flush()

            await caught_up(live.url, "tree", tree)

            assert edited.read_text(encoding="utf-8") == _work("written_aside_")
            assert (_events(), _metric("live_rescans_total")) == told
            await live.set_live("tree", live=False)
            await check(live, "tree", "tree")


async def test_io_that_went_is_waited_for_and_what_it_missed_is_found(
    live: Indexing, tree: Path
) -> None:
    """Red when the watch goes on after a restart of io without a look through the tree."""
    await live.io.stop()

    async def unreachable() -> bool:
        return (await live.watch_status("tree")).state == _WATCH.STATE_UNREACHABLE

    await _eventually(unreachable)
    (tree / "package_0" / "part_0.py").unlink()
    (tree / "meanwhile.py").write_text(_work("meanwhile"), encoding="utf-8")
    await live.io.start()

    await caught_up(live.url, "tree", tree)


async def test_a_tree_that_goes_is_waited_for_in_peace(live: Indexing, tree: Path) -> None:
    """What is indexed stays, no run is made, and once the tree is back it is looked through."""
    before = len(await live.list_runs("tree"))
    away = await asyncio.to_thread(tree.rename, tree.with_name("away"))

    async def missing() -> bool:
        return (await live.watch_status("tree")).state == _WATCH.STATE_TREE_MISSING

    await _eventually(missing)
    await _until_idle(live)
    runs = len(await live.list_runs("tree"))
    await asyncio.sleep(1.0)
    assert len(await live.list_runs("tree")) == runs <= before + 1
    assert await live.search("tree", "work_1")

    await asyncio.to_thread(away.rename, tree)
    (tree / "back.py").write_text(_work("back"), encoding="utf-8")
    await caught_up(live.url, "tree", tree, timeout_seconds=30)


async def test_what_changed_while_no_indexer_ran_is_found_at_its_start(
    live: Indexing, tree: Path
) -> None:
    """The watch goes on where it was: io kept what it saw."""
    before = {run.name for run in await live.list_runs("tree")}
    await live.indexer.stop()
    (tree / "meanwhile.py").write_text(_work("meanwhile"), encoding="utf-8")
    await live.indexer.start()

    await caught_up(live.url, "tree", tree)

    new = [run for run in await _until_idle(live) if run.name not in before]
    assert [run.trigger for run in new] == [_RUN.TRIGGER_CHANGES]


async def test_a_cancelled_run_of_a_watcher_is_made_up_for(
    tree: Path, roots: Path, sockets: Path, migrated_url: str
) -> None:
    """Red when what a run was for counts as indexed however the run ended."""
    hook = Hook()
    async with indexing(roots, sockets, migrated_url, embed=hook.app) as live:
        await live.create("tree", "tree")
        await live.set_live("tree")
        await caught_up(live.url, "tree", tree)
        await _until_idle(live)
        hook.hold()
        (tree / "first.py").write_text(_work("first"), encoding="utf-8")
        await hook.reached.wait()
        run = (await live.list_runs("tree"))[0]
        await live.runs.CancelIndexRun(runs_pb2.CancelIndexRunRequest(name=run.name))
        hook.go_on.set()

        await caught_up(live.url, "tree", tree)

        assert (await live.wait(run)).state == State.STATE_CANCELLED


async def test_a_paused_run_holds_up_no_change(
    tree: Path, roots: Path, sockets: Path, migrated_url: str
) -> None:
    """Red when a look through the tree whose time came is queued behind the run that is paused."""
    hook = Hook()
    often: dict[str, Any] = {"live_reconcile_seconds": 1.0}
    async with indexing(roots, sockets, migrated_url, embed=hook.app, **often) as live:
        await live.create("tree", "tree")
        await live.set_live("tree")
        await caught_up(live.url, "tree", tree)
        hook.hold()
        (tree / "first.py").write_text(_work("first"), encoding="utf-8")
        await hook.reached.wait()
        bulk = await live.begin("tree", Mode.MODE_FULL)
        await live.runs.PauseIndexRun(runs_pb2.PauseIndexRunRequest(name=bulk.name))
        hook.go_on.set()
        await caught_up(live.url, "tree", tree)
        await asyncio.sleep(1.5)  # a look is due by now

        (tree / "second.py").write_text(_work("second"), encoding="utf-8")
        await caught_up(live.url, "tree", tree)

        run = await live.runs.GetIndexRun(runs_pb2.GetIndexRunRequest(name=bulk.name))
        assert run.index_run.state == State.STATE_PAUSED
        await live.runs.ResumeIndexRun(runs_pb2.ResumeIndexRunRequest(name=bulk.name))
        await live.wait(bulk)


async def test_a_workspace_that_is_live_no_more_is_left_alone(live: Indexing, tree: Path) -> None:
    workspace = await live.set_live("tree", live=False)
    before = len(await _until_idle(live))
    (tree / "new.py").write_text(_work("created"), encoding="utf-8")
    await asyncio.sleep(0.7)

    assert not workspace.live
    assert not workspace.HasField("watch")
    assert len(await live.list_runs("tree")) == before
    assert _metric("live_watches") == 0


async def test_an_update_answers_at_once_and_embeds_nothing(
    tree: Path, roots: Path, sockets: Path, migrated_url: str
) -> None:
    """Red when the first look is made inside the call."""
    hook = Hook()
    hook.hold()
    async with indexing(roots, sockets, migrated_url, embed=hook.app) as live:
        await live.create("tree", "tree")
        async with asyncio.timeout(5):
            workspace = await live.set_live("tree")
        assert workspace.live
        hook.go_on.set()
        await caught_up(live.url, "tree", tree)


async def test_a_full_disk_of_the_database_is_waited_for(live: Indexing, tree: Path) -> None:
    """Red when it ends the watch: another begins again and again, each with an error in the log."""
    connection = await asyncpg.connect(live.url)
    watch = "SELECT fence FROM workspace_watches"
    before = await connection.fetchval(watch)
    errors = _metric("live_errors_total")
    await connection.execute(
        """
        CREATE SEQUENCE times;
        CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
          PERFORM nextval('times');
          RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full';
        END $$;
        CREATE TRIGGER full_disk BEFORE INSERT ON runs EXECUTE FUNCTION full_disk()
        """
    )
    (tree / "new.py").write_text(_work("written_meanwhile"), encoding="utf-8")
    await _eventually(lambda: connection.fetchval("SELECT is_called FROM times"))
    await connection.execute("DROP TRIGGER full_disk ON runs")

    await caught_up(live.url, "tree", tree)

    assert await connection.fetchval(watch) == before
    assert _metric("live_errors_total") == errors
    await connection.close()
