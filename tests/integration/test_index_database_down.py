"""PostgreSQL stops in the middle of a run, orderly or not, and comes back."""

from __future__ import annotations

import os
import shutil
import signal
import time
from typing import TYPE_CHECKING

import pytest

from services.cli.accounts import choose_account
from services.cli.postgres import EmbeddedPostgres
from services.cli.postgres_binaries import reachable_binaries
from services.cli.postgres_cluster import PostgresLayout
from services.cli.processes import wait_gone
from tests.integration.hooks import Hook
from tests.integration.indexing import State, indexing
from tests.integration.oracle import check
from tests.integration.samples import write_many
from tests.support.postgres import Database, make_reachable_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from services.cli.processes import ProcessId


class Server:
    """A PostgreSQL of the test's own, that may be stopped and killed."""

    def __init__(self, folder: Path) -> None:
        account = choose_account(os.environ)
        layout = PostgresLayout(
            data=folder / "postgres",
            sockets=folder / "postgres-run",
            password=folder / "postgres.password",
            log=folder / "postgres.log",
            binaries=reachable_binaries(folder / "postgres-bin", account),
        )
        self._server = EmbeddedPostgres(layout, account)
        self._process: ProcessId = self._server.start()
        self.url = Database(self._server.url).create()

    def restart(self) -> None:
        """Stops the server in its orderly way, and starts it."""
        self.stop()
        self._process = self._server.start()

    def kill(self) -> None:
        """Kills the postmaster by SIGKILL, and starts it."""
        os.kill(self._process.pid, signal.SIGKILL)
        assert wait_gone(self._process, 10)
        self._process = self._server.start()

    def stop(self) -> None:
        """Stops the server."""
        self._server.stop(self._process)


@pytest.fixture
def server() -> Iterator[Server]:
    folder = make_reachable_folder()
    server = Server(folder)
    yield server
    server.stop()
    shutil.rmtree(folder)


@pytest.mark.parametrize("how", ["restart", "kill"])
async def test_a_run_goes_on_when_the_database_is_back(
    server: Server, roots: Path, sockets: Path, how: str
) -> None:
    """F3: back within 15 s without a restart of any service, and equal to an index from scratch."""
    hook = Hook()
    write_many(roots / "tree", 60, per_file=6)
    async with indexing(
        roots, sockets, server.url, embed=hook.app, embed_batch_nodes=8, embed_batches_in_flight=2
    ) as services:
        await services.create("tree", "tree")
        hook.hold()
        run = await services.begin("tree")
        await hook.reached.wait()

        getattr(server, how)()
        hook.go_on.set()
        back_at = time.monotonic()
        run = await services.wait(run)

        assert run.state == State.STATE_SUCCEEDED
        assert time.monotonic() - back_at < 15
        await check(services, "tree", "tree")
