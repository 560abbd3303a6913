"""Checks of a database: version, extensions, schema, indexes, rights, room, clock."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from services.cli.doctor_rights import Rights, ask_rights, check_rights
from services.cli.doctor_schema import INDEXES, LISTS, model_indexes
from services.runtime.exits import ExitCode, StartError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import asyncpg

LEAST_POSTGRES = 160_000
LEAST_VECTOR = (0, 8, 6)
MOST_CLOCK_SECONDS = 2.0
LEAST_CONNECTIONS = 20

_TIMEOUT_SECONDS = 10.0
_REVISION = "SELECT version_num FROM alembic_version"
_FACTS = """
SELECT current_setting('server_version_num')::int AS version,
  (SELECT extversion FROM pg_extension WHERE extname = 'vector') AS vector,
  to_regclass('alembic_version') IS NOT NULL AS migrated,
  coalesce(has_table_privilege(to_regclass('alembic_version'), 'SELECT'), true) AS may_read,
  coalesce(has_table_privilege(to_regclass('models'), 'SELECT')
    AND has_table_privilege(to_regclass('vector_indexes'), 'SELECT'), false) AS may_read_models,
  ARRAY(SELECT relname::text FROM pg_class c JOIN pg_index i ON i.indexrelid = c.oid
    WHERE i.indisvalid AND pg_table_is_visible(c.oid)) AS valid,
  ARRAY(SELECT i.indexrelid::regclass::text FROM pg_index i WHERE NOT i.indisvalid
    AND NOT EXISTS (SELECT FROM pg_stat_progress_create_index p WHERE p.relid = i.indrelid))
    AS invalid,
  current_setting('max_connections')::int AS connections,
  (SELECT count(*) FROM pg_stat_activity) AS connected,
  pg_is_in_recovery() AS replica,
  extract(epoch FROM clock_timestamp())::float8 AS clock
"""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a database said of itself."""

    version: int
    vector: str | None
    schema: str | None
    valid: frozenset[str]
    invalid: tuple[str, ...]
    of_models: tuple[str, ...]
    """Indexes that there should be for the models that are registered."""

    may_read: bool
    """Whether the account may ask for the revision."""

    rights: Rights
    connections: int
    connected: int
    replica: bool
    clock_seconds: float
    """How far its clock is ahead of this machine's."""


def database_checks(url: str, *, tokens: bool = False) -> Mapping[str, Callable[[], str]]:
    """Returns the checks of one database by name; it is asked once, by the first of them.

    Args:
        url: of the database.
        tokens: whether the services are known to ask for tokens.
    """

    @cache
    def answer() -> Facts | StartError:
        try:
            return asyncio.run(_ask(url))
        except StartError as error:  # a silent database would be waited for by every check
            return error

    def facts() -> Facts:
        found = answer()
        if isinstance(found, StartError):
            raise found
        return found

    return {
        "database": lambda: check_version(facts()),
        "schema": lambda: check_schema(facts()),
        "indexes": lambda: check_indexes(facts()),
        "rights": lambda: check_rights(facts().rights, tokens=tokens),
        "connections": lambda: check_connections(facts()),
        "clock": lambda: check_clock(facts()),
    }


def check_version(facts: Facts) -> str:
    """Returns the versions of PostgreSQL and pgvector. Raises StartError."""
    major = facts.version // 10_000
    if facts.version < LEAST_POSTGRES:
        raise StartError(ExitCode.UNAVAILABLE, f"PostgreSQL {major}: upgrade it to 16 or newer.")
    if facts.vector is None:
        raise StartError(
            ExitCode.UNAVAILABLE,
            "pgvector is missing: install it, and let a superuser run CREATE EXTENSION vector.",
        )
    if tuple(map(int, facts.vector.split("."))) < LEAST_VECTOR:
        raise StartError(
            ExitCode.UNAVAILABLE,
            f"pgvector {facts.vector}: install 0.8.6 or newer, then ALTER EXTENSION vector UPDATE.",
        )
    if facts.replica:
        raise StartError(
            ExitCode.UNAVAILABLE, "A read replica: LODESTONE_DATABASE_URL must name the primary."
        )
    return f"PostgreSQL {major}.{facts.version % 10_000}, pgvector {facts.vector}"


def check_schema(facts: Facts) -> str:
    """Returns the schema's revision. Raises StartError unless it is this version's."""
    from services.indexer.storage.migrate import HEAD

    if not facts.may_read:
        raise StartError(
            ExitCode.FAILED,
            "The account may not read the revision: GRANT SELECT ON alembic_version TO it, or "
            "connect as the owner of the tables.",
        )
    if facts.schema is None:
        raise StartError(
            ExitCode.UNAVAILABLE, "No schema yet: run python -m services.indexer.migrate."
        )
    if facts.schema < HEAD:
        raise StartError(
            ExitCode.UNAVAILABLE,
            f"Revision {facts.schema}, and this version needs {HEAD}: "
            "run python -m services.indexer.migrate.",
        )
    if facts.schema > HEAD:
        raise StartError(
            ExitCode.UNAVAILABLE,
            f"Revision {facts.schema}, and this version knows {HEAD}: use the newer version.",
        )
    return f"revision {facts.schema}"


def check_indexes(facts: Facts) -> str:
    """Returns how many indexes were looked for. Raises StartError with what to build again.

    Another version's schema has others: of it only those are told that are not valid.
    """
    from services.indexer.storage.migrate import HEAD

    if facts.invalid:
        names = ", ".join(sorted(facts.invalid)[:5])
        raise StartError(
            ExitCode.FAILED,
            f"Not valid: {names}; run REINDEX INDEX CONCURRENTLY on each, and DROP INDEX on what "
            "a build left behind: names that end in _ccnew or _ccold.",
        )
    if facts.schema != HEAD:
        return f"none is broken; which are missing is known of {HEAD} alone"
    wanted = (*INDEXES, *facts.of_models)
    missing = [name for name in wanted if name not in facts.valid]
    if missing and all(name.endswith(LISTS) for name in missing):
        raise StartError(
            ExitCode.FAILED,
            f"Missing: {', '.join(missing)}; searches read all vectors until an indexer has built "
            "it again, once no run of the workspace is left.",
        )
    if missing:
        raise StartError(
            ExitCode.FAILED,
            f"Missing: {', '.join(missing)}; make them as the migrations do, or restore a backup.",
        )
    return f"{len(wanted)} looked for, all valid"


def check_connections(facts: Facts) -> str:
    """Returns how many connections are taken. Raises StartError when there is no room."""
    left = facts.connections - facts.connected
    if left < LEAST_CONNECTIONS:
        raise StartError(
            ExitCode.FAILED,
            f"{facts.connected} of {facts.connections} are taken: raise max_connections, or lower "
            "LODESTONE_INDEXER_DATABASE_CONNECTIONS.",
        )
    return f"{facts.connected} of {facts.connections}"


def check_clock(facts: Facts) -> str:
    """Returns how far the clocks are apart. Raises StartError when that is too far."""
    seconds = abs(facts.clock_seconds)
    if seconds > MOST_CLOCK_SECONDS:
        raise StartError(
            ExitCode.FAILED,
            f"The database's clock is {seconds:.1f} s away from this machine's: let both follow "
            "NTP. Leases go by the database's; certificates and tokens by each machine's.",
        )
    return f"within {max(seconds, 0.01):.2f} s of the database's"


async def _ask(url: str) -> Facts:
    import asyncpg

    try:
        connection = await asyncpg.connect(url, timeout=_TIMEOUT_SECONDS)
    except ValueError:  # its text may quote the password
        raise StartError(
            ExitCode.USAGE,
            "LODESTONE_DATABASE_URL is no URL of PostgreSQL, as postgresql://USER@HOST:5432/NAME.",
        ) from None
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        raise StartError(
            ExitCode.UNAVAILABLE,
            f"No connection ({type(error).__name__}): check LODESTONE_DATABASE_URL, the server and "
            "what lies between.",
        ) from None
    try:
        return await _facts(connection)
    except asyncpg.PostgresError as error:
        raise StartError(
            ExitCode.FAILED,
            f"It refuses what is asked ({type(error).__name__}): connect as the owner of the "
            "tables, or GRANT EXECUTE ON the functions and SELECT ON the tables of pg_catalog.",
        ) from None
    except (asyncpg.InterfaceError, OSError) as error:
        raise StartError(
            ExitCode.UNAVAILABLE,
            f"It accepts and does not answer ({type(error).__name__}): see the server's log, and "
            "what it is busy with.",
        ) from None
    finally:
        with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            await connection.close(timeout=_TIMEOUT_SECONDS)


async def _facts(connection: asyncpg.Connection) -> Facts:
    from services.indexer.storage.migrate import HEAD

    before = time.time()
    row = await connection.fetchrow(_FACTS, timeout=_TIMEOUT_SECONDS)
    here = (before + time.time()) / 2
    schema = None
    if row["migrated"] and row["may_read"]:
        schema = await connection.fetchval(_REVISION, timeout=_TIMEOUT_SECONDS)
    of_models: tuple[str, ...] = ()
    if schema == HEAD and row["may_read_models"]:
        of_models = await model_indexes(connection, _TIMEOUT_SECONDS)
    return Facts(
        version=row["version"],
        vector=row["vector"],
        schema=schema,
        valid=frozenset(row["valid"]),
        invalid=tuple(row["invalid"]),
        of_models=of_models,
        may_read=row["may_read"],
        rights=await ask_rights(connection, _TIMEOUT_SECONDS),
        connections=row["connections"],
        connected=row["connected"],
        replica=row["replica"],
        clock_seconds=row["clock"] - here,
    )
