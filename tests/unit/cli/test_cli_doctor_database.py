"""What `lodestone doctor` says of databases, by what they said of themselves."""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from services.cli import doctor_database
from services.cli.doctor_database import (
    Facts,
    check_clock,
    check_connections,
    check_indexes,
    check_schema,
    check_version,
    database_checks,
)
from services.cli.doctor_rights import Rights, check_rights
from services.cli.doctor_schema import INDEXES
from services.indexer.storage.migrate import HEAD
from services.runtime.exits import StartError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

WELL = Facts(
    version=160_000,
    vector="0.8.6",
    schema=HEAD,
    valid=frozenset(INDEXES),
    invalid=(),
    of_models=(),
    may_read=True,
    rights=Rights(may_create=True),
    connections=100,
    connected=80,
    replica=False,
    clock_seconds=-2.0,
)
"""A database that is just well enough for every check."""

WRONG: tuple[tuple[Callable[[Facts], str], dict[str, object], str], ...] = (
    (check_version, {"version": 150_010}, "^PostgreSQL 15: upgrade it to 16 or newer"),
    (check_version, {"vector": None}, "pgvector is missing: .* CREATE EXTENSION vector"),
    (check_version, {"vector": "0.8.5"}, "^pgvector 0.8.5: .* ALTER EXTENSION vector UPDATE"),
    (check_version, {"vector": "0.7.12"}, "^pgvector 0.7.12: "),
    (check_version, {"replica": True}, "must name the primary"),
    (check_schema, {"schema": None}, "No schema yet: run python -m services.indexer.migrate"),
    (check_schema, {"schema": None, "may_read": False}, "GRANT SELECT ON alembic_version"),
    (check_schema, {"schema": "0001"}, f"^Revision 0001, .* needs {HEAD}: "),
    (check_schema, {"schema": "9999"}, "use the newer version"),
    (check_indexes, {"invalid": ("b", "a")}, "^Not valid: a, b; run REINDEX"),
    (check_indexes, {"schema": "0001", "invalid": ("a",)}, "^Not valid: a; "),
    (check_indexes, {"valid": frozenset(INDEXES) - {"runs_newest"}}, "^Missing: runs_newest; "),
    (check_indexes, {"of_models": ("a_pkey", "b_lists")}, "^Missing: a_pkey, b_lists; make them"),
    (check_indexes, {"of_models": ("a_lists",)}, "^Missing: a_lists; searches read all vectors"),
    (check_connections, {"connected": 81}, "^81 of 100 are taken: raise max_connections"),
    (check_clock, {"clock_seconds": 2.1}, r"^The database's clock is 2\.1 s away .* NTP"),
    (check_clock, {"clock_seconds": -2.1}, r"^The database's clock is 2\.1 s away .* NTP"),
)
"""A check, what is wrong, and what it says."""


@pytest.mark.parametrize(("check", "harm", "told"), WRONG)
def test_what_is_wrong_with_a_database_is_told_with_what_to_do(
    check: Callable[[Facts], str], harm: dict[str, object], told: str
) -> None:
    """Red for each when its condition is taken out of the check."""
    assert check(WELL)
    with pytest.raises(StartError, match=told):
        check(replace(WELL, **harm))  # type: ignore[arg-type]


WITHOUT: tuple[tuple[dict[str, object], Mapping[str, bool], str], ...] = (
    ({"may_create": False}, {"tokens": False}, "GRANT CREATE ON SCHEMA public"),
    ({"foreign": ["a"]}, {"tokens": False}, "^The account does not own a: REASSIGN OWNED BY"),
    ({"foreign": [*"abcde"]}, {"tokens": False}, "does not own a, b, c and 2 more: "),
    (
        {"may_restrict": False},
        {"tokens": True},
        "let an administrator run CREATE ROLE lodestone_tenant",
    ),
    ({"may_restrict": False, "restricts": True}, {"tokens": False}, "or ALTER ROLE it CREATEROLE"),
    (
        {"restricts": True, "hidden": ["a"]},
        {"tokens": False},
        "^lodestone_tenant may not read a: GRANT SEL",
    ),
)
"""What an account may not, whether the services are known to ask for tokens, and what it says."""


@pytest.mark.parametrize(("harm", "known", "told"), WITHOUT)
def test_what_an_account_may_not_is_told_with_what_to_grant(
    harm: dict[str, object], known: Mapping[str, bool], told: str
) -> None:
    """Red for each when its condition is taken out of the check."""
    assert check_rights(WELL.rights, **known)
    with pytest.raises(StartError, match=told):
        check_rights(replace(WELL.rights, **harm), **known)  # type: ignore[arg-type]


def test_who_asks_for_no_token_needs_no_role() -> None:
    """Red when every account must be able to keep tenants apart."""
    plain = Rights(may_create=True, may_restrict=False, hidden=["a"])

    assert "tokens would need CREATE ROLE" in check_rights(plain, tokens=False)


def test_newer_versions_are_well() -> None:
    """Red when versions are compared as text."""
    assert check_version(replace(WELL, vector="0.10.0")) == "PostgreSQL 16.0, pgvector 0.10.0"


def test_indexes_of_another_version_are_not_missed() -> None:
    """An older schema lacks those that its migrations will make: the schema's check tells of it."""
    older = replace(WELL, schema="0001", valid=frozenset())

    assert check_indexes(older) == f"none is broken; which are missing is known of {HEAD} alone"


@pytest.mark.parametrize("url", ["nonsense", "mysql://a@b/c", "postgresql://a@b:port/c"])
def test_what_is_no_url_of_a_database_is_told_as_that(url: str) -> None:
    """Red when it is a server that cannot be reached."""
    with pytest.raises(StartError, match="LODESTONE_DATABASE_URL is no URL of PostgreSQL, as post"):
        database_checks(url)["database"]()


def test_a_database_that_never_answers_is_waited_for_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Red when each check asks anew."""
    monkeypatch.setattr(doctor_database, "_TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        checks = database_checks(f"postgresql://a:b@127.0.0.1:{silent.getsockname()[1]}/x")
        for check in checks.values():
            with pytest.raises(StartError, match=r"No connection \(TimeoutError\)"):
                check()

        silent.accept()[0].close()
        silent.setblocking(False)
        with pytest.raises(BlockingIOError):
            silent.accept()
