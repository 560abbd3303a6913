"""A real PostgreSQL for tests: the embedded one, or the server that a variable names.

`LODESTONE_TEST_DATABASE_URL` names a server whose user may create databases and the extensions
`vector` and `btree_gin`; without it, the embedded server is started once for all tests, over
folders that are removed at the end. Its data lie in memory where there is room: tests make and drop
hundreds of databases of as many files each.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import pytest

from services.cli.accounts import choose_account
from services.cli.postgres import EmbeddedPostgres
from services.cli.postgres_binaries import find_binaries, reachable_binaries
from services.cli.postgres_cluster import EXTENSIONS, PostgresLayout

if TYPE_CHECKING:
    from collections.abc import Iterator

URL_VARIABLE = "LODESTONE_TEST_DATABASE_URL"

_MEMORY = Path("/dev/shm")
_MEMORY_BYTES = 4 << 30
"""Free room that a server in memory asks for: it takes some hundred megabytes of it."""


@dataclass(frozen=True, slots=True)
class Database:
    """A database server that may be written to."""

    url: str
    """DSN of a database of the server, of a user who may create others."""

    is_brief: bool = False
    """Whether nothing of it has to outlast the machine: copies are then made by files."""

    def execute(self, sql: str, url: str | None = None) -> str:
        """Runs SQL by psql and returns its rows, columns divided by `|`."""
        psql = find_binaries() / "bin" / "psql"
        result = subprocess.run(
            [psql, url or self.url, "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if result.returncode != 0:
            raise AssertionError(result.stderr)
        return result.stdout.strip()

    def create(self) -> str:
        """Creates an empty database with the extensions, and returns its DSN."""
        url = self.copy("template1")
        for extension in EXTENSIONS:
            self.execute(f"CREATE EXTENSION IF NOT EXISTS {extension}", url)
        return url

    def copy(self, template: str) -> str:
        """Creates a database as the named one is, and returns its DSN."""
        name = f"test_{secrets.token_hex(6)}"
        # Files need a checkpoint, which costs nothing here; else every page goes through the log.
        strategy = "FILE_COPY" if self.is_brief else "WAL_LOG"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY {strategy}")
        return with_database(self.url, name)

    def drop(self, url: str) -> None:
        """Drops a database that `create` made, also while something is connected to it."""
        self.execute(f"DROP DATABASE IF EXISTS {urlsplit(url).path[1:]} WITH (FORCE)")


def with_database(url: str, name: str) -> str:
    """Returns the DSN of another database of the same server."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


def make_reachable_folder(parent: Path | None = None) -> Path:
    """Returns a new temporary folder that also the account of PostgreSQL can enter."""
    folder = Path(tempfile.mkdtemp(prefix="lodestone-", dir=parent))
    folder.chmod(0o711)
    return folder


@pytest.fixture(scope="session")
def database_server() -> Iterator[Database]:
    """A running PostgreSQL with pgvector, one for all tests.

    No test takes it down: what it writes waits for no disk.
    """
    with running(is_brief=True) as server:
        yield server


class _BriefPostgres(EmbeddedPostgres):
    """The embedded server, which loses what it holds when the machine goes down."""

    def _command(self) -> list[str]:
        return [*super()._command(), "-c", "fsync=off"]


@contextmanager
def running(*, is_brief: bool = False) -> Iterator[Database]:
    """Yields the server that the variable names, or the embedded one, stopped at the end.

    Args:
        is_brief: the embedded server may lose what it holds when the machine goes down. Its data
            lie in memory where there is room.
    """
    if os.environ.get(URL_VARIABLE):
        yield Database(os.environ[URL_VARIABLE])
        return
    folder = make_reachable_folder()
    data = make_reachable_folder(_MEMORY) if is_brief and _has_memory() else folder
    account = choose_account(os.environ)
    layout = PostgresLayout(
        data=data / "postgres",
        sockets=folder / "postgres-run",
        password=folder / "postgres.password",
        log=folder / "postgres.log",
        binaries=reachable_binaries(folder / "postgres-bin", account),
    )
    server = (_BriefPostgres if is_brief else EmbeddedPostgres)(layout, account)
    process = server.start()
    try:
        yield Database(server.url, is_brief)
    finally:
        server.stop(process)
        for made in {folder, data}:
            shutil.rmtree(made)


def _has_memory() -> bool:
    return _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free >= _MEMORY_BYTES


@pytest.fixture
def database_url(database_server: Database) -> Iterator[str]:
    """DSN of a fresh, empty database with the extensions; dropped after the test."""
    url = database_server.create()
    yield url
    database_server.drop(url)
