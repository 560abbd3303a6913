"""Fixtures of the fault tests: a database with an audit, and processes over it."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from services.indexer.storage.database import Database
from services.indexer.storage.migrate import migrate
from services.runtime import log
from tests.faults.cluster import Cluster, make_cluster
from tests.support.invariants import install_audit
from tests.support.postgres_server import running_server

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from tests.support import postgres
    from tests.support.postgres_server import Server

SEEDS = int(os.environ.get("LODESTONE_TEST_SEEDS", "20"))
"""How many seeds each seeded harness runs; `make test-nightly` sets more."""

FEW_SEEDS = int(os.environ.get("LODESTONE_TEST_SEEDS", "2"))
"""As many for a harness of long rounds, of which `make test` runs few."""

NIGHTLY_SEEDS = 100
"""From as many on, faults last as long as they are written; with fewer as long as they need."""

_SHOWN_LINES = 60


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what lies here as slow: it starts processes."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Shows the ends of the processes' logs with a test that failed."""
    report = yield
    cluster = getattr(item, "funcargs", {}).get("cluster")
    if report.failed and isinstance(cluster, Cluster):
        for member in cluster.members:
            lines = member.log.splitlines()[-_SHOWN_LINES:]
            report.sections.append((f"log of {member.name}", "\n".join(lines)))
    return report


@pytest.fixture(autouse=True)
def _quiet_log() -> None:
    log.configure("indexer", "error", "json")


def new_database(server: postgres.Database) -> str:
    """Returns the DSN of a new database with the schema and the audit."""
    url = server.create()
    asyncio.run(prepare(url))
    return url


async def prepare(url: str) -> None:
    """Brings an empty database to the schema, with the audit."""
    database = Database(url, connections=2, timeout_seconds=30)
    await database.open()
    await migrate(database, url)
    await database.close()
    await install_audit(url)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder for sockets and logs whose path is short."""
    path = Path(tempfile.mkdtemp(prefix="lf-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def roots() -> Iterator[Path]:
    """The folder that io may read."""
    path = Path(tempfile.mkdtemp(prefix="trees-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A PostgreSQL of the module's own, which it may stop, freeze and kill."""
    with running_server() as running:
        yield running


@pytest.fixture(scope="module")
def urls(database_server: postgres.Database) -> Iterator[tuple[str, str]]:
    """DSNs of a database to disturb and of one for the reference."""
    made = new_database(database_server), new_database(database_server)
    yield made
    for url in made:
        database_server.drop(url)


@pytest.fixture(scope="module")
def shared_cluster(folder: Path, roots: Path, urls: tuple[str, str]) -> Iterator[Cluster]:
    """Two indexers, io and embed, for all tests of a module; each test leaves them running."""
    cluster = make_cluster(folder, roots, *urls)
    cluster.start()
    yield cluster
    cluster.kill()


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Cluster:
    """The cluster with every process running."""
    shared_cluster.start()
    return shared_cluster
