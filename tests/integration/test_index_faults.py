"""Things go wrong in the middle of a run: the index ends right, and nothing is left behind.

Planted bugs that turned these red: a batch failed whole with the text that kills the service, a
file that changed was not planned again, what failed in an earlier run was not listed, rows beneath
an unreadable folder were removed.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import grpc
import pytest

from lodestone.indexer.v1 import index_run_service_pb2 as runs_pb2
from tests.integration.indexing import State, indexing
from tests.integration.oracle import broken_rules, check, rows_of
from tests.integration.samples import close, edit, write_many, write_tree
from tests.unit.io.harness import unprivileged

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.integration.hooks import Hook
    from tests.integration.indexing import Indexing


@pytest.fixture
def indexer_settings() -> dict[str, Any]:
    """Settings of the indexer; a test that wants others overrides it by a parameter."""
    return {}


without_new_connections = pytest.mark.parametrize(
    "indexer_settings", [{"database_connections": 2}], ids=["two-connections"]
)
"""Both connections are open from the start: without root's rights no further one can be."""


@pytest.fixture
async def services(
    roots: Path, sockets: Path, migrated_url: str, hook: Hook, indexer_settings: dict[str, Any]
) -> AsyncIterator[Indexing]:
    """Services whose batches are small, so that a run can be met in its middle."""
    write_many(roots / "tree", 60, per_file=6)
    async with indexing(
        roots,
        sockets,
        migrated_url,
        embed=hook.app,
        embed_batch_nodes=8,
        embed_batches_in_flight=2,
        **indexer_settings,
    ) as running:
        await running.create("tree", "tree")
        yield running
        hook.go_on.set()


async def _meet(services: Indexing, hook: Hook) -> runs_pb2.IndexRun:
    """Begins a run and returns once all is planned and the first batch stands before the model."""
    hook.hold()
    run = await services.begin("tree")
    await hook.reached.wait()
    return await services.wait(run, lambda seen: seen.progress.nodes_total_final)


async def test_an_embed_service_that_goes_away_costs_a_wait(services: Indexing, hook: Hook) -> None:
    run = await _meet(services, hook)
    stopping = asyncio.create_task(services.embed.stop())
    hook.go_on.set()
    await stopping
    await services.embed.start()

    run = await services.wait(run)

    assert run.state == State.STATE_SUCCEEDED
    assert run.attempt == 1
    await check(services, "tree", "tree")


async def test_an_embed_service_that_stays_away_fails_the_run_and_the_next_goes_on(
    roots: Path, sockets: Path, migrated_url: str, hook: Hook
) -> None:
    write_many(roots / "tree", 60, per_file=6)
    async with indexing(
        roots,
        sockets,
        migrated_url,
        embed=hook.app,
        embed_batch_nodes=8,
        embed_batches_in_flight=1,
        dependency_patience_seconds=0.3,
    ) as services:
        await services.create("tree", "tree")
        run = await services.begin("tree")
        await services.wait(run, lambda seen: seen.progress.forwards > 0)
        await services.embed.stop()
        run = await services.wait(run)
        await services.embed.start()

        again = await services.succeed("tree")

        assert run.state == State.STATE_FAILED
        assert "embed service" in run.error.message
        assert again.nodes_reused > 0
        assert run.progress.forwards + again.forwards == again.nodes_total
        await check(services, "tree", "tree")


async def test_io_that_goes_away_costs_a_wait(services: Indexing, hook: Hook) -> None:
    run = await _meet(services, hook)
    await services.io.stop()
    hook.go_on.set()
    await services.io.start()

    run = await services.wait(run)

    assert run.state == State.STATE_SUCCEEDED
    await check(services, "tree", "tree")


async def test_a_text_that_kills_the_service_fails_alone(
    services: Indexing, hook: Hook, roots: Path
) -> None:
    hook.poison, hook.repeated = "value + 33\n", True

    run = await services.run("tree")
    (outcome,) = await services.failures(run)

    assert run.state == State.STATE_SUCCEEDED_WITH_WARNINGS
    assert (run.progress.nodes_failed, run.progress.nodes_pending) == (1, 0)
    assert outcome.qualified_name == "work_33"
    assert outcome.error.message
    assert await broken_rules(services.url) == []


async def test_a_text_that_killed_the_service_is_not_tried_by_the_next_run(
    services: Indexing, hook: Hook
) -> None:
    hook.poison = "value + 33\n"
    await services.run("tree")
    hook.calls.clear()

    run = await services.run("tree")

    assert hook.calls == []
    assert run.state == State.STATE_SUCCEEDED_WITH_WARNINGS
    assert [item.qualified_name for item in await services.failures(run)] == ["work_33"]
    assert await broken_rules(services.url) == []


async def test_a_full_run_tries_again_what_failed(services: Indexing, hook: Hook) -> None:
    hook.poison = "value + 33\n"
    await services.run("tree")
    hook.poison = ""

    run = await services.run("tree", runs_pb2.IndexRun.Mode.MODE_FULL)

    assert run.state == State.STATE_SUCCEEDED
    assert run.progress.forwards == 1
    await check(services, "tree", "tree")


async def test_a_text_that_the_model_cannot_answer_fails_alone(
    services: Indexing, hook: Hook
) -> None:
    hook.poison, hook.code = "value + 33\n", grpc.StatusCode.INTERNAL

    run = await services.run("tree")

    assert run.progress.nodes_failed == 1
    assert run.progress.nodes_embedded == run.progress.nodes_total - 1
    assert await broken_rules(services.url) == []


async def test_a_file_edited_under_the_run_ends_as_it_is(
    services: Indexing, hook: Hook, roots: Path
) -> None:
    run = await _meet(services, hook)
    edit(roots / "tree" / "part_000042.py", "value + 44", "value + 4444")
    hook.go_on.set()
    told: list[runs_pb2.Progress] = []

    def has_ended(seen: runs_pb2.IndexRun) -> bool:
        told.append(seen.progress)
        return seen.HasField("end_time")

    run = await services.wait(run, has_ended)
    await services.run("tree")

    assert run.state == State.STATE_SUCCEEDED
    assert all(seen.files_parsed <= seen.files_to_parse for seen in told), told
    assert any("value + 4444" in text for text in hook.texts)
    assert not any("value + 44\n" in text for text in hook.texts)
    await check(services, "tree", "tree")


async def test_a_file_that_vanishes_under_the_run_is_gone_from_the_index(
    services: Indexing, hook: Hook, roots: Path
) -> None:
    run = await _meet(services, hook)
    (roots / "tree" / "part_000042.py").unlink()
    hook.go_on.set()

    run = await services.wait(run)

    assert run.state == State.STATE_SUCCEEDED
    assert "part_000042.py" not in {
        row[0] for row in (await rows_of(services.url, "tree"))["files"]
    }
    await check(services, "tree", "tree")


async def test_a_tree_that_vanishes_under_the_run_fails_it_and_nothing_is_removed(
    services: Indexing, hook: Hook, roots: Path
) -> None:
    run = await _meet(services, hook)
    before = (await rows_of(services.url, "tree"))["files"]
    (roots / "tree").rename(roots / "away")
    hook.go_on.set()

    run = await services.wait(run)
    after = (await rows_of(services.url, "tree"))["files"]
    left = await broken_rules(services.url)
    (roots / "away").rename(roots / "tree")
    again = await services.succeed("tree")

    assert run.state == State.STATE_FAILED
    assert "folder" in run.error.message
    assert after == before
    assert left == []
    assert again.nodes_removed == 0
    await check(services, "tree", "tree")


async def test_a_cancelled_run_stops_and_the_next_goes_on(services: Indexing, hook: Hook) -> None:
    run = await _meet(services, hook)

    await services.runs.CancelIndexRun(runs_pb2.CancelIndexRunRequest(name=run.name))
    run = await services.wait(run)
    hook.go_on.set()
    left = await broken_rules(services.url)
    again = await services.succeed("tree")

    assert run.state == State.STATE_CANCELLED
    assert run.HasField("end_time")
    assert left == []
    assert again.forwards + run.progress.forwards == again.nodes_total
    await check(services, "tree", "tree")


async def test_a_queued_run_is_cancelled_at_once(
    roots: Path, sockets: Path, migrated_url: str, hook: Hook
) -> None:
    write_tree(roots / "one")
    async with indexing(
        roots, sockets, migrated_url, embed=hook.app, max_concurrent_runs=1
    ) as services:
        await services.create("work", "one")
        await services.create("wait", "one")
        hook.hold()
        busy = await services.begin("work")
        await hook.reached.wait()
        run = await services.begin("wait")

        response = await services.runs.CancelIndexRun(runs_pb2.CancelIndexRunRequest(name=run.name))

        assert response.index_run.state == State.STATE_CANCELLED
        hook.go_on.set()
        assert (await services.wait(busy)).state == State.STATE_SUCCEEDED


async def test_a_stopped_indexer_gives_its_run_back_and_the_next_goes_on(
    services: Indexing, hook: Hook
) -> None:
    run = await _meet(services, hook)
    await services.indexer.stop()
    connection = await asyncpg.connect(services.url)
    state = await connection.fetchval("SELECT state FROM runs")
    working = await connection.fetchval("SELECT max(attempt) FROM nodes WHERE status <> 'embedded'")
    await connection.close()
    hook.go_on.set()
    await services.indexer.start()

    run = await services.wait(run)

    assert (state, working) == ("queued", 0)
    assert run.state == State.STATE_SUCCEEDED
    assert run.attempt == 1
    await check(services, "tree", "tree")


async def test_lost_connections_make_the_run_begin_again(services: Indexing, hook: Hook) -> None:
    run = await _meet(services, hook)
    connection = await asyncpg.connect(services.url)
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND application_name = 'lodestone-indexer'"
    )
    await connection.close()
    hook.go_on.set()

    run = await services.wait(run)

    assert run.state == State.STATE_SUCCEEDED
    await check(services, "tree", "tree")


@pytest.mark.parametrize("code", ["query_canceled", "out_of_memory", "read_only_sql_transaction"])
async def test_what_the_database_cannot_do_now_makes_the_run_begin_again(
    services: Indexing, code: str
) -> None:
    """A statement is ended by an administrator or by a timeout of the server, or has no memory."""
    connection = await asyncpg.connect(services.url)
    await connection.execute(
        f"""
        CREATE SEQUENCE times;
        CREATE FUNCTION fail_once() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
          IF nextval('times') = 1 THEN RAISE EXCEPTION 'not now' USING ERRCODE = '{code}'; END IF;
          RETURN NEW;
        END $$;
        CREATE TRIGGER fail_once BEFORE INSERT ON embedding_cache EXECUTE FUNCTION fail_once()
        """
    )

    run = await services.run("tree")
    failed = await connection.fetchval("SELECT last_value FROM times")
    await connection.close()

    assert failed > 1
    assert run.state == State.STATE_SUCCEEDED
    await check(services, "tree", "tree")


@asynccontextmanager
async def _commits_fail(url: str, code: str) -> AsyncIterator[asyncpg.Connection]:
    """Has the database fail what writes vectors with an error of its own; yields a connection."""
    connection = await asyncpg.connect(url)
    await connection.execute(
        f"""
        CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS
          $$ BEGIN RAISE EXCEPTION 'it fails' USING ERRCODE = '{code}'; END $$;
        CREATE TRIGGER fail BEFORE INSERT ON embedding_cache EXECUTE FUNCTION fail()
        """
    )
    yield connection
    await connection.execute("DROP TRIGGER fail ON embedding_cache")
    await connection.close()


@pytest.mark.parametrize("indexer_settings", [{"max_run_attempts": 1}], ids=["one-attempt"])
async def test_a_run_that_the_database_never_lets_go_on_comes_to_an_end(
    services: Indexing,
) -> None:
    """Red when it burns no attempt: it began again several times a second, for good."""
    async with _commits_fail(services.url, "query_canceled") as connection:
        run = await services.run("tree")
        taken = await connection.fetchval("SELECT last_value FROM fences")

    assert run.state == State.STATE_STALE
    assert taken < 100
    await services.succeed("tree")
    await check(services, "tree", "tree")


async def test_a_database_that_was_a_standby_for_a_while_is_written_again(
    services: Indexing, hook: Hook
) -> None:
    """After a failover: connections that lead to a server that cannot be written stay so for good.

    Red when they are kept.
    """
    run = await _meet(services, hook)
    connection = await asyncpg.connect(services.url)
    name = await connection.fetchval("SELECT current_database()")
    await connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    ended = await connection.fetch(
        "SELECT pg_terminate_backend(pid), clock_timestamp() AS at FROM pg_stat_activity "
        "WHERE datname = current_database() AND application_name = 'lodestone-indexer'"
    )
    async with asyncio.timeout(20):
        while not await connection.fetchval(  # noqa: ASYNC110 - it tells nobody
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
            "AND application_name = 'lodestone-indexer' AND backend_start > $1",
            max(row["at"] for row in ended),
        ):
            await asyncio.sleep(0.01)
    # As its owner may, also in a session that only reads.
    await connection.execute("SET default_transaction_read_only = off")
    await connection.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
    await connection.close()
    hook.go_on.set()

    run = await services.wait(run)

    assert run.state == State.STATE_SUCCEEDED
    await check(services, "tree", "tree")


async def test_a_full_disk_ends_the_run_with_its_reason(services: Indexing, hook: Hook) -> None:
    async with _commits_fail(services.url, "disk_full"):
        run = await services.run("tree")
        left = await broken_rules(services.url)

    assert run.state == State.STATE_FAILED
    assert "disk is full" in run.error.message
    assert left == []
    await services.succeed("tree")
    await check(services, "tree", "tree")


@without_new_connections
async def test_an_unreadable_folder_is_a_warning_and_keeps_its_rows(
    services: Indexing, hook: Hook, roots: Path
) -> None:
    write_tree(roots / "tree" / "closed")
    await services.succeed("tree")
    before = await rows_of(services.url, "tree")
    close(roots, roots / "tree" / "closed")
    (roots / "tree" / "part_000000.py").unlink()

    with unprivileged():
        run = await services.run("tree")
    (roots / "tree" / "closed").chmod(0o755)

    after = await rows_of(services.url, "tree")
    assert run.state == State.STATE_SUCCEEDED_WITH_WARNINGS
    assert any("closed" in warning for warning in run.warnings)
    assert {row[0] for row in before["files"]} - {row[0] for row in after["files"]} == {
        "part_000000.py"
    }
    assert await broken_rules(services.url) == []


@without_new_connections
async def test_an_unreadable_file_is_listed_and_read_by_the_next_run(
    services: Indexing, hook: Hook, roots: Path
) -> None:
    await services.succeed("tree")
    edit(roots / "tree" / "part_000042.py", "value + 44", "value + 4444")
    close(roots, roots / "tree" / "part_000042.py")

    with unprivileged():
        run = await services.run("tree")
        listed = await services.failures(run)
    (roots / "tree" / "part_000042.py").chmod(0o644)
    again = await services.succeed("tree")

    assert run.state == State.STATE_SUCCEEDED_WITH_WARNINGS
    assert [item.path for item in listed] == ["part_000042.py"]
    assert again.forwards == 1
    await check(services, "tree", "tree")
