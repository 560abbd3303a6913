"""Rights of the database's account, and of the role as which rows are read for tenants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.cli.doctor_schema import SEQUENCES, tables
from services.indexer.storage.tenancy import ROLE
from services.runtime.exits import ExitCode, StartError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import asyncpg

_NAMED = 3
"""Tables that a message names at most."""

_RIGHTS = """
WITH named AS (SELECT oid FROM pg_class
    WHERE relnamespace = current_schema()::regnamespace
      AND (relname = ANY ($1) OR relname ~ '^node_vectors_m[0-9]+$')),
  parts AS (SELECT p.relid AS oid FROM named, pg_partition_tree(named.oid) p),
  own AS (SELECT * FROM pg_class JOIN (TABLE named UNION TABLE parts) found USING (oid)),
  tenant AS (SELECT oid FROM pg_roles WHERE rolname = $2)
SELECT has_schema_privilege(current_schema(), 'CREATE') AS may_create,
  ARRAY(SELECT relname::text FROM own
    WHERE NOT pg_has_role(current_user, relowner, 'USAGE') ORDER BY relname) AS foreign,
  CASE WHEN NOT EXISTS (SELECT FROM tenant)
      THEN (SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user)
    WHEN current_setting('server_version_num')::int < 160000 THEN true
    ELSE (SELECT pg_has_role(current_user, oid, 'SET, MEMBER WITH ADMIN OPTION') FROM tenant)
  END AS may_restrict,
  EXISTS (SELECT FROM pg_policy p JOIN own ON own.oid = p.polrelid WHERE p.polname = 'tenant')
    AS restricts,
  ARRAY(SELECT relname::text FROM own, tenant
    WHERE relkind IN ('r', 'p') AND NOT has_table_privilege(tenant.oid, own.oid, 'SELECT')
    ORDER BY relname) AS hidden
"""


@dataclass(frozen=True, slots=True)
class Rights:
    """What an account may."""

    may_create: bool
    foreign: Sequence[str] = ()
    """Tables, and sequences, that another owns."""
    may_restrict: bool = True
    """Whether it may become the tenants' role, or may make it."""
    restricts: bool = False
    """Whether the tenants' rules are there: services with tokens have made them."""
    hidden: Sequence[str] = ()
    """Tables that the tenants' role may not read."""


async def ask_rights(
    connection: asyncpg.Connection, timeout_seconds: float, *, role: str = ROLE
) -> Rights:
    """Returns what the account of a connection may, and what the tenants' role may."""
    names = [*tables(), *SEQUENCES]
    row = await connection.fetchrow(_RIGHTS, names, role, timeout=timeout_seconds)
    return Rights(**dict(row))


def check_rights(rights: Rights, *, tokens: bool) -> str:
    """Returns what the account may. Raises StartError with what to grant.

    Args:
        rights: what it may.
        tokens: whether the services are known to ask for tokens.
    """
    if not rights.may_create:
        raise StartError(
            ExitCode.FAILED,
            "The account may not make tables, as models and workspaces need: "
            "GRANT CREATE ON SCHEMA public TO it.",
        )
    if rights.foreign:
        raise StartError(
            ExitCode.FAILED,
            f"The account does not own {_some(rights.foreign)}: REASSIGN OWNED BY ... TO it, or "
            "ALTER TABLE ... OWNER TO it.",
        )
    make = f"CREATE ROLE {ROLE} NOLOGIN; GRANT {ROLE} TO it"
    if not rights.may_restrict:
        if tokens or rights.restricts:
            raise StartError(
                ExitCode.FAILED,
                f"The account may not become {ROLE}, as whom rows are read for a token that names "
                f"workspaces: let an administrator run {make}, or ALTER ROLE it CREATEROLE before "
                "the role is there.",
            )
        return f"owns its tables and may make others; tokens would need {make}"
    if rights.restricts and rights.hidden:
        raise StartError(
            ExitCode.FAILED,
            f"{ROLE} may not read {_some(rights.hidden)}: "
            f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {ROLE}.",
        )
    return "owns its tables, may make others, keeps tenants apart"


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")
