"""`lodestone doctor` finds what is wrong with a deployment, and says what to do about it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from services.cli import doctor_database
from services.cli.doctor_database import database_checks
from services.cli.doctor_schema import INDEXES
from services.cli.postgres_cluster import EXTENSIONS
from services.indexer.storage.database import Database as Pool
from services.indexer.storage.migrate import HEAD, migrate
from services.runtime.exits import ExitCode, StartError

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.support.postgres import Database
    from tests.support.stack import Lodestone

_NOWHERE = "127.0.0.1:1"


def _checks(product: Lodestone, *arguments: str) -> tuple[int, dict[str, dict[str, object]]]:
    done = product.run("doctor", "--json", *arguments)
    return done.code, {each["name"]: each for each in done.json}


def test_a_deployment_that_is_well_passes_every_check(product: Lodestone, flask: Path) -> None:
    product.index(flask)
    addresses = [
        part
        for name in ("io", "embed", "indexer")
        for part in (f"--{name}", product.state.processes[name].address)
    ]
    elsewhere = product.with_settings(DATABASE_URL=product.database_url())

    code, checks = _checks(elsewhere, *addresses, "--database")

    assert [name for name, each in checks.items() if not each["ok"]] == []
    assert code == 0
    names = {"io", "embed", "indexer", "io access", "embed access", "indexer access", "model"}
    names |= {
        "versions",
        "limits",
        "workspaces",
        "database",
        "schema",
        "indexes",
        "rights",
        "connections",
        "clock",
    }
    assert set(checks) == names


def test_this_machine_is_checked_with_its_running_database(product: Lodestone) -> None:
    assert product.run("up").code == 0

    code, checks = _checks(product)

    assert code == 0, checks
    assert {"limits", "schema", "indexes", "clock"} <= set(checks)


def test_what_does_not_answer_is_named(product: Lodestone) -> None:
    code, checks = _checks(product, "--indexer", _NOWHERE)

    assert code == ExitCode.FAILED
    assert "cannot be reached" in str(checks["indexer"]["detail"])


def test_a_service_that_is_another_is_told(product: Lodestone) -> None:
    assert product.run("up").code == 0

    _, checks = _checks(product, "--io", product.state.processes["embed"].address)

    assert checks["io"]["ok"]
    assert not checks["io access"]["ok"]
    assert "another service" in str(checks["io access"]["detail"])


def test_a_workspace_whose_model_is_not_served_is_told(
    fresh_product: Lodestone, flask: Path
) -> None:
    """Red when the check looks at no model."""
    fresh_product.index(flask)
    indexer = fresh_product.state.processes["indexer"].address
    _, well = _checks(fresh_product, "--indexer", indexer)
    other = fresh_product.with_settings(EMBED_MODEL="hashing:64")
    assert other.run("up").code == 0

    code, checks = _checks(other, "--indexer", indexer)

    assert well["workspaces"]["ok"], well
    assert code == ExitCode.FAILED
    assert [name for name, each in checks.items() if not each["ok"]] == ["workspaces"]
    assert "models/hashing (other weights)" in str(checks["workspaces"]["detail"])


_PENDING = "CREATE INDEX nodes_pending ON nodes (workspace_id, id) WHERE status = 'pending'"
HARMS = (
    (
        "UPDATE alembic_version SET version_num = '0001'",
        f"UPDATE alembic_version SET version_num = '{HEAD}'",
        "schema",
        "services.indexer.migrate",
    ),
    (
        "UPDATE alembic_version SET version_num = '9999'",
        f"UPDATE alembic_version SET version_num = '{HEAD}'",
        "schema",
        "newer version",
    ),
    (
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'nodes_failed'::regclass",
        "UPDATE pg_index SET indisvalid = true WHERE indexrelid = 'nodes_failed'::regclass",
        "indexes",
        "REINDEX",
    ),
    ("DROP INDEX nodes_pending", _PENDING, "indexes", "nodes_pending"),
    ("DROP INDEX model_nodes_pending", "SELECT 1", "indexes", "model_nodes_pending"),
)
"""What harms a database, what mends it, the check that sees it, and what that says to do."""


def test_a_database_that_was_harmed_is_told_with_what_to_do(
    database_server: Database, database_url: str
) -> None:
    """Planted once: a schema check that looked at nothing."""
    asyncio.run(_migrate(database_url))
    assert _wrong(database_url) == {}
    for harm, mend, check, advice in HARMS:
        database_server.execute(harm, database_url)
        wrong = _wrong(database_url)
        assert list(wrong) == [check], harm
        assert advice in wrong[check], harm
        database_server.execute(mend, database_url)


NOT_LOOKED_FOR = frozenset({"alembic_version_pkc"})
"""Indexes of the migrated schema that doctor lets be missing: a table of one row needs none."""


def test_doctor_looks_for_the_indexes_that_the_migrations_make(
    database_server: Database, database_url: str
) -> None:
    """Red when a migration adds an index, or drops one, that doctor is not told of."""
    asyncio.run(_migrate(database_url))

    made = database_server.execute(
        "SELECT relname FROM pg_class WHERE relkind IN ('i', 'I') AND NOT relispartition "
        "AND relnamespace = current_schema()::regnamespace",
        database_url,
    )

    assert set(made.split()) - NOT_LOOKED_FOR == set(INDEXES)


def test_the_schema_needs_no_extension_but_pgvector(
    database_server: Database, database_url: str
) -> None:
    """Doctor looks for no other: plpgsql is in every PostgreSQL. Red when an index needs one."""
    asyncio.run(_migrate(database_url))

    for name in sorted({*EXTENSIONS} - {"vector"}):
        database_server.execute(f"DROP EXTENSION {name} RESTRICT", database_url)

    assert _wrong(database_url) == {}


async def _migrate(url: str) -> None:
    pool = Pool(url, connections=2, timeout_seconds=30)
    await pool.open()
    await migrate(pool, url)
    await pool.close()


def _wrong(url: str) -> dict[str, str]:
    """Returns what the checks of a database find wrong."""
    found = {}
    for name, look in database_checks(url).items():
        try:
            look()
        except StartError as error:
            found[name] = error.message
    return found


def test_an_account_without_rights_and_a_wrong_password_are_told(
    database_server: Database, database_url: str
) -> None:
    """Red when what PostgreSQL refuses is caught while connecting alone."""
    asyncio.run(_migrate(database_url))
    database_server.execute("CREATE ROLE poor LOGIN PASSWORD 'canary-secret'")
    try:
        parts = urlsplit(database_url)
        place = parts.netloc.rpartition("@")[2]
        poor = urlunsplit(parts._replace(netloc=f"poor:canary-secret@{place}"))
        wrong = _wrong(poor)
        assert sorted(wrong) == ["rights", "schema"]
        assert "GRANT CREATE" in wrong["rights"]
        assert "GRANT SELECT ON alembic_version" in wrong["schema"]

        database_server.execute("GRANT CREATE ON SCHEMA public TO poor", database_url)
        database_server.execute("GRANT SELECT ON alembic_version TO poor", database_url)
        wrong = _wrong(poor)
        assert list(wrong) == ["rights"]
        assert "REASSIGN OWNED" in wrong["rights"]

        wrong = _wrong(poor.replace("canary-secret", "canary-wrong"))
        assert "No connection" in wrong["database"]
        assert "canary" not in str(wrong)
    finally:
        database_server.execute("DROP OWNED BY poor", database_url)
        database_server.execute("DROP ROLE poor")


def test_a_refused_question_is_told_by_every_check(
    database_server: Database, database_url: str
) -> None:
    """Red when an error of a question ends the command."""
    database_server.execute(
        "REVOKE EXECUTE ON FUNCTION pg_catalog.pg_is_in_recovery() FROM PUBLIC", database_url
    )
    database_server.execute("CREATE ROLE refused LOGIN PASSWORD 'canary-secret'")
    parts = urlsplit(database_url)
    place = parts.netloc.rpartition("@")[2]
    try:
        wrong = _wrong(urlunsplit(parts._replace(netloc=f"refused:canary-secret@{place}")))
    finally:
        database_server.execute("DROP ROLE refused")

    assert len(set(wrong.values())) == 1
    assert len(wrong) == 6
    assert "InsufficientPrivilegeError" in wrong["database"]
    assert "GRANT" in wrong["database"]


def test_a_question_that_waits_is_given_up(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As while another migrates. Red when only connecting has its errors told."""
    asyncio.run(_migrate(database_url))
    monkeypatch.setattr(doctor_database, "_TIMEOUT_SECONDS", 1.0)

    async def locked() -> dict[str, str]:
        connection = await asyncpg.connect(database_url)
        try:
            async with connection.transaction():
                await connection.execute("LOCK TABLE alembic_version IN ACCESS EXCLUSIVE MODE")
                return await asyncio.to_thread(_wrong, database_url)
        finally:
            await connection.close()

    told = asyncio.run(locked())

    assert len(told) == 6
    assert set(told.values()) == {told["database"]}
    assert "does not answer (TimeoutError)" in told["database"]
