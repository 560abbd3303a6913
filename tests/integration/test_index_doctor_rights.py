"""What doctor says of the rights of a database's account, on a real server."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import asyncpg
import pytest

from services.cli.channels import TOKEN_FILE
from services.cli.doctor import of_running_database
from services.cli.doctor_deployment import Deployment, deployment_checks
from services.cli.doctor_rights import ask_rights, check_rights
from services.cli.doctor_schema import SEQUENCES, tables
from services.cli.environment import DATABASE_URL
from services.cli.tokens import ACCEPTED
from services.indexer.model import EmbedModel, WorkspaceId
from services.indexer.storage import tenancy
from services.indexer.storage.database import Database as Pool
from services.indexer.storage.partitions import add_partition, vectors_table
from services.indexer.storage.workspaces import WorkspaceStore
from services.runtime.exits import StartError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.support.postgres import Database

_RELATIONS = """
SELECT relname FROM pg_class c WHERE relnamespace = 'public'::regnamespace
  AND relkind IN ('r', 'p', 'S') AND NOT relispartition
  AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = c.oid AND deptype = 'i'
    AND refobjid <> objid)
"""
_WELL = "owns its tables, may make others, keeps tenants apart"
_MODEL = EmbedModel("models/one", "f" * 64, 8, 16, 16)


@pytest.fixture
def owner(database_server: Database, migrated_url: str) -> Iterator[str]:
    """Name of an account that owns everything of a database's schema, and may nothing else."""
    name = f"owner_{secrets.token_hex(4)}"
    database_server.execute(f"CREATE ROLE {name}")
    database_server.execute(f"GRANT ALL ON SCHEMA public TO {name}", migrated_url)
    for relation in database_server.execute(_RELATIONS, migrated_url).split():
        _give(database_server, migrated_url, relation, name)
    yield name
    database_server.execute(f"REASSIGN OWNED BY {name} TO CURRENT_USER", migrated_url)
    database_server.execute(f"DROP OWNED BY {name}", migrated_url)
    database_server.execute(f"DROP ROLE {name}")


@pytest.fixture
def role(database_server: Database, migrated_url: str) -> Iterator[str]:
    """Name of a role that stands for the tenants', and is not there yet."""
    name = f"tenant_{secrets.token_hex(4)}"
    yield name
    database_server.execute(
        f"DO $$ BEGIN IF to_regrole('{name}') IS NOT NULL THEN DROP OWNED BY {name}; "
        f"DROP ROLE {name}; END IF; END $$",
        migrated_url,
    )


@pytest.fixture
async def pool(migrated_url: str) -> AsyncIterator[Pool]:
    """The database, as the superuser."""
    database = Pool(migrated_url, connections=2, timeout_seconds=30)
    await database.open()
    yield database
    await database.close()


def _give(server: Database, url: str, relation: str, account: str) -> None:
    server.execute(f"ALTER TABLE {relation} OWNER TO {account}", url)


def _as(url: str, account: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}role={account}"


async def _told(url: str, *, role: str = tenancy.ROLE, tokens: bool = True) -> str:
    connection = await asyncpg.connect(url)
    try:
        return check_rights(await ask_rights(connection, 10, role=role), tokens=tokens)
    except StartError as error:
        return error.message
    finally:
        await connection.close()


def test_doctor_knows_what_the_migrations_make(
    database_server: Database, migrated_url: str
) -> None:
    """Red when a migration adds a table or a sequence that doctor does not know."""
    made = database_server.execute(_RELATIONS, migrated_url)

    assert set(made.split()) == {*tables(), *SEQUENCES}


async def test_each_table_and_sequence_must_be_the_account_s(
    database_server: Database, migrated_url: str, owner: str, role: str
) -> None:
    """Red for what is not looked at: each of them belongs to another once."""
    database_server.execute(f"ALTER ROLE {owner} CREATEROLE")
    well = await _told(_as(migrated_url, owner), role=role)
    assert well == _WELL
    for relation in (*tables(), *SEQUENCES):
        _give(database_server, migrated_url, relation, "CURRENT_USER")
        told = await _told(_as(migrated_url, owner), role=role)
        assert f"does not own {relation}: REASSIGN OWNED BY" in told
        _give(database_server, migrated_url, relation, owner)
    assert await _told(_as(migrated_url, owner), role=role) == well


async def test_tables_of_models_and_partitions_are_looked_at(
    pool: Pool, database_server: Database, migrated_url: str, owner: str, role: str
) -> None:
    """Red when the tables of migrations alone are."""
    model = await WorkspaceStore(pool).register_model(_MODEL)
    table = vectors_table(model.id)
    async with pool.transaction() as connection:
        await add_partition(connection, table, WorkspaceId(7))

    both = await _told(_as(migrated_url, owner), role=role)
    _give(database_server, migrated_url, table, owner)
    partition = await _told(_as(migrated_url, owner), role=role)

    assert f"does not own {table}, {table}_w7:" in both
    assert f"does not own {table}_w7:" in partition


async def test_an_account_that_may_not_keep_tenants_apart_is_told_where_tokens_are_used(
    pool: Pool, database_server: Database, migrated_url: str, owner: str, role: str
) -> None:
    """Red when nobody asks for CREATEROLE, or for the role, or where no token is used."""
    url = _as(migrated_url, owner)

    async def told() -> str:
        return await _told(url, role=role)

    lacks_the_right = await told()
    without_tokens = await _told(url, role=role, tokens=False)
    database_server.execute(f"ALTER ROLE {owner} CREATEROLE")
    may_make_it = await told()
    database_server.execute(f"CREATE ROLE {role} NOLOGIN")
    of_another = await told()
    database_server.execute(f"GRANT {role} TO {owner} WITH SET FALSE, INHERIT TRUE")
    may_not_become = await told()
    database_server.execute(f"GRANT {role} TO {owner} WITH SET TRUE")
    may_become = await told()
    await tenancy.install(pool)
    database_server.execute(f"REVOKE {role} FROM {owner}")
    rules_are_there = await _told(url, role=role, tokens=False)

    for lacking in (lacks_the_right, of_another, may_not_become, rules_are_there):
        assert "may not become lodestone_tenant" in lacking
        assert "CREATE ROLE lodestone_tenant NOLOGIN; GRANT lodestone_tenant TO it" in lacking
    assert without_tokens.startswith("owns its tables and may make others; tokens would need")
    assert may_make_it == may_become == _WELL


async def test_what_the_tenants_role_may_not_read_is_told(
    pool: Pool, database_server: Database, migrated_url: str
) -> None:
    """As after a restore without privileges, which leaves the rules."""
    await tenancy.install(pool)
    well = await _told(migrated_url)
    database_server.execute("REVOKE SELECT ON nodes FROM lodestone_tenant", migrated_url)

    assert well == _WELL
    assert "lodestone_tenant may not read nodes: GRANT SELECT" in await _told(migrated_url)


def test_settings_tell_whether_tokens_are_used(
    migrated_url: str, owner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red when doctor does not look at them: of services elsewhere, and of this machine's."""
    url = _as(migrated_url, owner)
    elsewhere = Deployment({}, url)
    monkeypatch.delenv(TOKEN_FILE, raising=False)
    assert "tokens would need" in deployment_checks(elsewhere)["rights"]()

    monkeypatch.setenv(TOKEN_FILE, "/token")
    with pytest.raises(StartError, match="may not become"):
        deployment_checks(elsewhere)["rights"]()
    here = {DATABASE_URL: url, ACCEPTED: "/tokens"}
    with pytest.raises(StartError, match="may not become"):
        of_running_database(tmp_path, here)["rights"]()
