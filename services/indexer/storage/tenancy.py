"""The second line between tenants: what a caller of some workspaces reads, PostgreSQL filters.

The first line is the access rule of each method. Reads on behalf of a caller whose token names
workspaces run as the role `lodestone_tenant`, for which row-level security shows rows of these
workspaces alone: a statement that forgets its `workspace_id` then finds too little, not too much.
Vectors and terms have no such rule: they hold no name and no text, what is found in them is read
through `nodes`, and a rule would keep PostgreSQL from using the index over terms, whose operators
are not leakproof. For the same reason an index that such a caller needs is over a column, not over
an expression.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import asyncpg

from services.runtime.exits import ExitCode, StartError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.indexer.storage.database import Connection, Database

ROLE = "lodestone_tenant"
SETTING = "lodestone.workspaces"
_LOCK_KEY = 0x10DE_5710

_TABLES = """
SELECT c.relname FROM pg_class c
WHERE c.relnamespace = current_schema()::regnamespace AND NOT c.relispartition
  AND (c.relkind = 'r' OR c.relname = 'node_references')
  AND (c.relname = 'workspaces' OR EXISTS (SELECT FROM pg_attribute a
    WHERE a.attrelid = c.oid AND a.attname = 'workspace_id' AND NOT a.attisdropped))
ORDER BY c.relname
"""
_LACKING = f"""
{_TABLES.replace("ORDER BY c.relname", "")}
  AND NOT (c.relrowsecurity
    AND EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = c.oid AND p.polname = 'tenant'))
"""
_OWN_NAME = f"name LIKE ANY (string_to_array(current_setting('{SETTING}', true), ','))"
_OWN_ROWS = "workspace_id IN (SELECT id FROM workspaces)"


async def install(database: Database) -> None:
    """Makes the role and its rules, unless they are there; also for tables that are new.

    Raises:
        StartError: the service's account may not; the message tells what to do.
    """
    try:
        async with database.transaction() as connection:
            if await _is_installed(connection):
                return
            await connection.execute(f"SELECT pg_advisory_xact_lock({_LOCK_KEY})")
            await _make_role(connection)
            await _make_rules(connection)
    except (asyncpg.InsufficientPrivilegeError, asyncpg.UndefinedObjectError) as error:
        raise StartError(
            ExitCode.UNAVAILABLE,
            f"The database account may not keep tenants apart ({error}). Let an administrator run: "
            f"CREATE ROLE {ROLE} NOLOGIN; GRANT {ROLE} TO the account, which must own the tables.",
        ) from None


async def restrict(connection: Connection, patterns: Sequence[str]) -> None:
    """Has the rest of the transaction read rows of some workspaces alone.

    Args:
        connection: inside a transaction.
        patterns: names of workspaces, as patterns of LIKE; none shows nothing.
    """
    await connection.execute(
        "SELECT set_config('role', $1, true), set_config($2, $3, true)",
        ROLE,
        SETTING,
        ",".join(patterns),
    )


async def _is_installed(connection: Connection) -> bool:
    if not await connection.fetchval("SELECT to_regrole($1) IS NOT NULL", ROLE):
        return False
    may_become = await connection.fetchval("SELECT pg_has_role(current_user, $1, 'SET')", ROLE)
    return bool(may_become) and not await connection.fetch(_LACKING)


async def _make_role(connection: Connection) -> None:
    if not await connection.fetchval("SELECT to_regrole($1) IS NOT NULL", ROLE):
        await connection.execute(f"CREATE ROLE {ROLE} NOLOGIN")
    if not await connection.fetchval("SELECT pg_has_role(current_user, $1, 'SET')", ROLE):
        await connection.execute(f"GRANT {ROLE} TO CURRENT_USER WITH SET TRUE, INHERIT FALSE")


async def _make_rules(connection: Connection) -> None:
    schema = await connection.fetchval("SELECT quote_ident(current_schema())")
    await connection.execute(f"GRANT USAGE ON SCHEMA {schema} TO {ROLE}")
    await connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {ROLE}")
    await connection.execute(
        f"ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT SELECT ON TABLES TO {ROLE}"
    )
    for row in await connection.fetch(_LACKING):
        table = row["relname"]
        rule = _OWN_NAME if table == "workspaces" else _OWN_ROWS
        await connection.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        await connection.execute(f"DROP POLICY IF EXISTS tenant ON {table}")
        await connection.execute(
            f"CREATE POLICY tenant ON {table} FOR SELECT TO {ROLE} USING ({rule})"
        )
