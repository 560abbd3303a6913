"""A PostgreSQL of a test's own, that may be stopped, frozen and killed."""

from __future__ import annotations

import os
import shutil
import signal
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psutil

from services.cli.accounts import choose_account
from services.cli.postgres import EmbeddedPostgres
from services.cli.postgres_binaries import reachable_binaries
from services.cli.postgres_cluster import PostgresLayout
from services.cli.processes import wait_gone
from tests.support.postgres import Database, make_reachable_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from services.cli.processes import ProcessId

_GONE_SECONDS = 10


class Server:
    """The server over one folder, with an empty database."""

    def __init__(self, folder: Path) -> None:
        account = choose_account(os.environ)
        self.sockets = folder / "postgres-run"
        layout = PostgresLayout(
            data=folder / "postgres",
            sockets=self.sockets,
            password=folder / "postgres.password",
            log=folder / "postgres.log",
            binaries=reachable_binaries(folder / "postgres-bin", account),
        )
        self._server = EmbeddedPostgres(layout, account)
        self._process: ProcessId = self._server.start()
        self.database = Database(self._server.url)
        self.url = self.database.create()

    @property
    def pid(self) -> int:
        """The postmaster."""
        return self._process.pid

    def restart(self, *, away_seconds: float = 0.0) -> None:
        """Stops the server in its orderly way (fast mode), and starts it, after a while."""
        self.stop()
        time.sleep(away_seconds)
        self.start()

    def restart_at_once(self) -> None:
        """Stops the server without a checkpoint (immediate mode), and starts it."""
        os.kill(self._process.pid, signal.SIGQUIT)
        assert wait_gone(self._process, _GONE_SECONDS)
        self.start()

    def kill(self, *, away_seconds: float = 0.0) -> None:
        """Kills the postmaster by SIGKILL, and starts it, after a while."""
        os.kill(self._process.pid, signal.SIGKILL)
        assert wait_gone(self._process, _GONE_SECONDS)
        time.sleep(away_seconds)
        self.start()

    def kill_backend(self) -> None:
        """Kills one backend of the indexer by SIGKILL: the server restarts itself."""
        pid = self.database.execute(
            "SELECT min(pid) FROM pg_stat_activity WHERE application_name = 'lodestone-indexer'"
        )
        os.kill(int(pid), signal.SIGKILL)

    def terminate_backends(self) -> None:
        """Ends every connection of the indexer by pg_terminate_backend."""
        self.database.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'lodestone-indexer'"
        )

    def freeze(self) -> None:
        """Stops every process of the server by SIGSTOP."""
        for process in self._processes():
            process.suspend()

    def thaw(self) -> None:
        """Lets frozen processes go on."""
        for process in self._processes():
            process.resume()

    def start(self) -> None:
        """Starts the server."""
        self._process = self._server.start()

    def stop(self) -> None:
        """Stops the server."""
        self._server.stop(self._process)

    def _processes(self) -> list[psutil.Process]:
        postmaster = psutil.Process(self._process.pid)
        return [postmaster, *postmaster.children(recursive=True)]


@contextmanager
def running_server() -> Iterator[Server]:
    """Yields a new server, which has a folder that its account can enter."""
    folder = make_reachable_folder()
    try:
        server = Server(folder)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)
