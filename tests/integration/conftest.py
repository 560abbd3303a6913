"""Fixtures of tests against a real PostgreSQL: a migrated database, and all services over it."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from services.indexer.storage.database import Database
from services.indexer.storage.migrate import migrate
from services.runtime import log
from tests.integration.hooks import Hook
from tests.integration.indexing import indexing
from tests.integration.io_hooks import IoHook
from tests.integration.replicas import replica
from tests.integration.samples import write_tree
from tests.integration.tenants import two_tenants
from tests.support.invariants import broken_rules

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.integration.indexing import Indexing
    from tests.integration.replicas import Replica
    from tests.integration.tenants import Tenants
    from tests.support import postgres


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what lies here as slow: it needs PostgreSQL."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def hook() -> Hook:
    """Where a test holds up or breaks the embed service that it starts with `hook.app`."""
    return Hook()


@pytest.fixture
def io_hook(monkeypatch: pytest.MonkeyPatch) -> IoHook:
    """Where a test spoils answers of every io service that runs meanwhile."""
    hook = IoHook()
    hook.install(monkeypatch)
    return hook


@pytest.fixture(autouse=True)
def _quiet_log() -> None:
    log.configure("indexer", "error", "json")


@pytest.fixture(scope="session")
def migrated_template(database_server: postgres.Database) -> Iterator[str]:
    """Name of a database with the schema, to copy."""
    url = database_server.create()

    async def make() -> None:
        database = Database(url, connections=2, timeout_seconds=30)
        await database.open()
        await migrate(database, url)
        await database.close()

    asyncio.run(make())
    yield urlsplit(url).path[1:]
    database_server.drop(url)


@pytest.fixture
def migrated_url(database_server: postgres.Database, migrated_template: str) -> Iterator[str]:
    """DSN of a fresh database with the schema."""
    url = database_server.copy(migrated_template)
    yield url
    database_server.drop(url)


@pytest.fixture
async def database(migrated_url: str) -> AsyncIterator[Database]:
    """An open pool over a fresh database."""
    database = Database(migrated_url, connections=8, timeout_seconds=30)
    await database.open()
    yield database
    await database.close()


@pytest.fixture
def one(database: Database) -> Replica:
    """The stores of a process."""
    return replica(database)


@pytest.fixture
def other(database: Database) -> Replica:
    """The stores of another one, over the same database."""
    return replica(database)


@pytest.fixture
def roots() -> Iterator[Path]:
    """The folder that io may read."""
    folder = Path(tempfile.mkdtemp(prefix="trees-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def sockets() -> Iterator[Path]:
    """A folder whose path is short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="ls-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
async def services(roots: Path, sockets: Path, migrated_url: str) -> AsyncIterator[Indexing]:
    """All three services over a fresh database."""
    async with indexing(roots, sockets, migrated_url) as running:
        yield running


@pytest.fixture
async def tree(services: Indexing, roots: Path) -> AsyncIterator[Path]:
    """An indexed tree."""
    folder = write_tree(roots / "tree")
    await services.create("tree", "tree")
    await services.succeed("tree")
    yield folder
    assert await broken_rules(services.url) == []


@pytest.fixture
async def tenants(
    roots: Path, tmp_path: Path, sockets: Path, migrated_url: str
) -> AsyncIterator[Tenants]:
    """Two tenants, a- and b-, each with an indexed workspace; a's holds the canary."""
    async with two_tenants(roots, tmp_path, sockets, migrated_url) as both:
        yield both
