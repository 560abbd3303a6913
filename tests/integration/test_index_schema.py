"""Migrations, and the plans of hot statements."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from services.indexer.model import Tree
from services.indexer.search.stemming import stem
from services.indexer.storage import migrate as migrate_module
from services.indexer.storage.database import Database
from services.indexer.storage.files import PAGE, PAGE_OF
from services.indexer.storage.indexed_files import ONE_FILE
from services.indexer.storage.migrate import HEAD, migrate
from services.indexer.storage.model_queue import CLAIM_OF_MODEL
from services.indexer.storage.model_rows import UNQUEUE
from services.indexer.storage.nodes import CLAIM, CLAIM_SCOPED
from services.indexer.storage.run_reader import FAILURES_ALONE, OUTCOMES
from services.indexer.storage.run_rows import SELECT_RUNS
from services.indexer.storage.search import DEFINITIONS, HITS
from services.indexer.storage.workspaces import WorkspaceStore
from services.runtime.exits import StartError
from tests.integration.plans import fill, plan_of
from tests.integration.replicas import parsed_file, replica, workspace_with_model
from tests.support.old_schema import upgrade_to

if TYPE_CHECKING:
    from collections.abc import Sequence


def test_the_newest_revision_is_the_one_that_the_code_names() -> None:
    config = Config()
    config.set_main_option(
        "script_location", str(Path(migrate_module.__file__).parent / "migrations")
    )

    assert ScriptDirectory.from_config(config).get_heads() == [HEAD]


async def test_a_database_is_migrated_from_nothing_and_then_left_alone(database_url: str) -> None:
    database = Database(database_url, connections=2, timeout_seconds=30)
    await database.open()

    await migrate(database, database_url)
    before = await _objects(database_url)
    await migrate(database, database_url)

    assert await _objects(database_url) == before
    assert "table nodes" in before
    await database.close()


async def test_two_processes_may_migrate_at_once(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    await connection.execute("DROP EXTENSION vector")
    await connection.close()

    async def start() -> None:
        database = Database(database_url, connections=2, timeout_seconds=30)
        await database.open()
        await migrate(database, database_url)
        await database.close()

    await asyncio.gather(*(start() for _ in range(4)))

    assert "table nodes" in await _objects(database_url)


async def test_terms_of_an_older_version_become_stems(database_url: str) -> None:
    """What an older version stored is found by today's questions, with nothing read or embedded."""
    counts = {"handlers": 2, "handler": 1, "x1": 4, "gethandlers": 1}
    connection = await asyncpg.connect(database_url)
    await asyncio.to_thread(upgrade_to, database_url, "0003")
    await connection.execute(
        "INSERT INTO content_terms VALUES ('\\x01', $1, $2, 8), ('\\x02', '{}', '{}', 0)",
        list(counts),
        list(counts.values()),
    )
    database = Database(database_url, connections=2, timeout_seconds=30)
    await database.open()

    await migrate(database, database_url)

    rows = await connection.fetch("SELECT terms, counts FROM content_terms ORDER BY content_hash")
    await database.close()
    await connection.close()
    assert dict(zip(*rows[0], strict=True)) == {"handl": 3, "x1": 4, stem("gethandlers"): 1}
    assert list(rows[1]) == [[], []]


async def test_marks_of_an_older_version_are_those_of_the_active_model(database_url: str) -> None:
    """What 0014 marked of vectors is put back by this version, and its marks go."""
    await asyncio.to_thread(upgrade_to, database_url, "0014")
    database = Database(database_url, connections=2, timeout_seconds=30)
    await database.open()
    stores = replica(database)
    workspace, model = await workspace_with_model(stores)
    await stores.queue(workspace)
    run = await stores.take()
    await stores.apply(run, model, parsed_file("a.py", "a", "b"))
    marked, sound = await stores.nodes.claim(run, 9)
    await stores.complete(run, model, [marked, sound])
    async with database.connection() as connection:
        await connection.execute(
            "INSERT INTO index_marks (workspace_id, path, node_id, kind) "
            "VALUES ($1, 'a.py', $2, 'vector_wrong')",
            workspace.id,
            marked.id,
        )

    await migrate(database, database_url)
    await stores.ledger.put_back_marked(run, model.id)

    states = await stores.value("SELECT array_agg(status ORDER BY id) FROM nodes")
    vectors = await stores.value(f"SELECT array_agg(node_id) FROM node_vectors_m{model.id}")
    marks = await stores.value("SELECT count(*) FROM index_marks")
    await database.close()
    assert (states, vectors, marks) == (["pending", "embedded"], [sound.id], 0)


async def test_a_newer_schema_is_refused_and_left_alone(migrated_url: str) -> None:
    database = Database(migrated_url, connections=2, timeout_seconds=30)
    await database.open()
    async with database.connection() as connection:
        await connection.execute("UPDATE alembic_version SET version_num = '9999'")

    with pytest.raises(StartError, match=r"9999.*newer version"):
        await migrate(database, migrated_url)

    await database.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql://user:canary-secret@127.0.0.1:1/none", "LODESTONE_DATABASE_URL"),
        ("mysql://user:canary-secret@host/none", "not a PostgreSQL URL"),
    ],
)
async def test_a_wrong_url_is_one_line_without_the_password(url: str, message: str) -> None:
    with pytest.raises(StartError) as caught:
        await Database(url, connections=2, timeout_seconds=5).open()

    assert message in caught.value.message
    assert "canary-secret" not in caught.value.message
    assert "\n" not in caught.value.message


async def test_a_workspace_is_made_once_and_not_with_another_folder(database: Database) -> None:
    workspaces = WorkspaceStore(database)

    made = await asyncio.gather(
        *(workspaces.create("tree", Tree("roots/a", "x"), "") for _ in range(10))
    )

    assert sum(created for _, created in made) == 1
    with pytest.raises(Exception, match="another folder"):
        await workspaces.create("tree", Tree("roots/a", "y"), "")


async def test_hot_statements_walk_indexes(migrated_url: str, database: Database) -> None:
    """On 20,000 nodes with fresh statistics, none reads all of `nodes`, `files` or `runs`.

    Planted once: files of hits joined in any order, for as many hits as a search has.
    """
    stores = replica(database)
    await workspace_with_model(stores)
    connection = await asyncpg.connect(migrated_url)
    await fill(connection)
    await connection.execute(
        "INSERT INTO run_nodes SELECT n.workspace_id, r.id, n.id, true FROM nodes n, "
        "(SELECT id FROM runs LIMIT 1) r; ANALYZE run_nodes"
    )
    statements: list[tuple[str, Sequence[Any]]] = [
        (CLAIM, (1, _UUID, 1, 128, _UUID, 10.0)),
        (CLAIM_SCOPED, (1, _UUID, 1, 128, _UUID, 10.0, 0)),
        (CLAIM_OF_MODEL, (1, _UUID, 1, 128, _UUID, 10.0, 1)),
        (PAGE, (1, "f5", 2000)),
        (PAGE_OF, (1, "", 2000, ["f5", "f77"])),
        (ONE_FILE, (1, "f5")),
        (OUTCOMES.format(only=""), (1, _UUID, "", "", 0, [], 50)),
        (f"{SELECT_RUNS} WHERE r.seq < $1 ORDER BY r.seq DESC LIMIT $2", (1 << 60, 50)),
        (
            f"{SELECT_RUNS} WHERE r.workspace_id = $1 AND r.seq < $2 ORDER BY r.seq DESC LIMIT $3",
            (1, 1 << 60, 50),
        ),
        (HITS, (1, [5, 6, 7])),
        (HITS, (1, list(range(1, 601)))),
        (DEFINITIONS.format(""), (1, ["n5", "n6"], 50)),
    ]

    for sql, arguments in statements:
        plan = await plan_of(connection, sql, arguments)
        assert not re.search(r"Seq Scan on (nodes|files|runs)\b", plan), plan
    await connection.close()


async def test_statements_over_models_and_failures_walk_indexes(
    migrated_url: str, database: Database
) -> None:
    """A claim reads what waits for its model, a list of failures the failures alone."""
    stores = replica(database)
    await workspace_with_model(stores)
    connection = await asyncpg.connect(migrated_url)
    await fill(connection)
    await connection.execute(
        """
        INSERT INTO models (name, fingerprint, dimensions, max_tokens)
        VALUES ('models/b', 'b', 8, 256);
        INSERT INTO workspace_models (workspace_id, model_id) VALUES (1, 2);
        INSERT INTO model_nodes (workspace_id, model_id, node_id)
        SELECT 1, m, n.id FROM nodes n, generate_series(1, 100) m WHERE m = 2 OR n.id % 10 = 0;
        DELETE FROM model_nodes WHERE model_id = 2 AND node_id % 100 <> 0;
        INSERT INTO run_outcomes (workspace_id, run_id, entity, path, result, stage)
        SELECT 1, r.id, 'file', 'f' || i, CASE i % 500 WHEN 0 THEN 'failed' ELSE 'ok' END, 'parse'
        FROM (SELECT id FROM runs LIMIT 1) r, generate_series(1, 5000) i;
        ANALYZE
        """
    )
    run = await connection.fetchval("SELECT run_id FROM run_outcomes LIMIT 1")
    failures = OUTCOMES.format(only=FAILURES_ALONE)
    statements: list[tuple[str, str, Sequence[Any]]] = [
        ("model_nodes_pending", CLAIM_OF_MODEL, (1, run, 1, 128, run, 10.0, 2)),
        ("model_nodes_pkey", UNQUEUE, (1, [5, 6, 7])),
        ("run_outcomes_failed", failures, (1, run, "", "", 0, ["failed", "timeout"], 50)),
        ("run_outcomes_pkey", OUTCOMES.format(only=""), (1, run, "f3", "", 0, [], 50)),
    ]

    for index, sql, arguments in statements:
        plan = await plan_of(connection, sql, arguments)
        assert index in plan, plan
        assert not re.search(r"Seq Scan on (nodes|model_nodes|run_outcomes)\b", plan), plan
    await connection.close()


async def test_a_page_of_nodes_stays_small_when_all_is_embedded(
    migrated_url: str, database: Database
) -> None:
    """A claim that finds nothing reads the index of what waits, not the workspace."""
    stores = replica(database)
    await workspace_with_model(stores)
    connection = await asyncpg.connect(migrated_url)
    await fill(connection)

    plan = await plan_of(connection, CLAIM, (1, _UUID, 1, 128, _UUID, 10.0))

    assert "nodes_pending" in plan
    await connection.close()


async def test_a_run_of_a_workspace_touches_no_row_of_another(database: Database) -> None:
    stores = replica(database)
    first, model = await workspace_with_model(stores, "first")
    second, _ = await workspace_with_model(stores, "second")
    for workspace in (first, second):
        await stores.queue(workspace)
    runs = [await stores.take(), await stores.take()]
    for run in runs:
        await stores.apply(run, model, parsed_file("a.py", run.workspace_name))

    claimed = await stores.nodes.claim(runs[0], 10)
    await stores.files.remove(runs[0], ["a.py"])
    await stores.ledger.finish(runs[0], None)

    assert [node.qualified_name for node in claimed] == [runs[0].workspace_name]
    assert await stores.value("SELECT (count(*), min(status))::text FROM nodes") == "(1,pending)"


_UUID = "00000000-0000-0000-0000-000000000001"


async def _objects(url: str) -> list[str]:
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch(
            """
            SELECT CASE relkind WHEN 'i' THEN 'index ' WHEN 'S' THEN 'sequence ' ELSE 'table ' END
              || relname FROM pg_class WHERE relnamespace = 'public'::regnamespace
            UNION ALL SELECT 'trigger ' || tgname FROM pg_trigger WHERE NOT tgisinternal
            ORDER BY 1
            """
        )
    finally:
        await connection.close()
    return [row[0] for row in rows]
