"""Makes a new PostgreSQL cluster, whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.cli.accounts import command_as
from services.cli.files import write_atomic
from services.runtime.durable import flush_folder
from services.runtime.exits import ExitCode, StartError

if TYPE_CHECKING:
    from pathlib import Path

    from services.cli.accounts import Account

SUPERUSER = "lodestone"
DATABASE = "lodestone"
EXTENSIONS = ("vector", "btree_gin")
_HBA = "# Only this machine, only with the password.\nlocal all all scram-sha-256\n"
_TIMEOUT_SECONDS = 120


@dataclass(frozen=True, slots=True)
class PostgresLayout:
    """Where one embedded server keeps what is its own."""

    data: Path
    """PGDATA."""
    sockets: Path
    """Folder of the socket, mode 0700."""
    password: Path
    """File with the superuser's password, mode 0600."""
    log: Path
    binaries: Path
    """Folder with `bin/postgres`."""


def create_cluster(layout: PostgresLayout, account: Account | None) -> None:
    """Makes the cluster with its database and extensions.

    Everything is built in a folder beside and renamed at the end, so that a full disk or a kill
    leaves nothing half-made behind.

    Raises:
        StartError: there is no space, or initdb failed; the message holds its last line.
    """
    half = layout.data.with_name(f"{layout.data.name}.tmp")
    shutil.rmtree(half, ignore_errors=True)
    make_private(half, account)
    password_copy = layout.sockets / "initdb.password"
    try:
        password = ensure_password(layout.password)
        write_atomic(password_copy, password)
        _give(password_copy, account)
        _initdb(layout, half, password_copy, account)
        (half / "pg_hba.conf").write_text(_HBA, encoding="utf-8")
        _single(layout, half, "postgres", f"CREATE DATABASE {DATABASE};\n", account)
        extensions = "".join(f"CREATE EXTENSION IF NOT EXISTS {name};\n" for name in EXTENSIONS)
        _single(layout, half, DATABASE, extensions, account)
        _sync(layout, half, account)
        half.rename(layout.data)
        flush_folder(layout.data.parent)
    except BaseException:
        shutil.rmtree(half, ignore_errors=True)
        raise
    finally:
        password_copy.unlink(missing_ok=True)


def ensure_password(path: Path) -> str:
    """Returns the superuser's password; makes a random one the first time."""
    if not path.exists():
        write_atomic(path, secrets.token_hex(24))
    return path.read_text("utf-8").strip()


def make_private(folder: Path, account: Account | None) -> None:
    """Makes a folder that only the account that runs PostgreSQL can enter."""
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)
    _give(folder, account)


def run_as(
    account: Account | None, command: list[str], text: str = ""
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end as the account, in an environment that holds no secret."""
    return subprocess.run(  # noqa: S603 - fixed binaries of the wheel
        command_as(account, command),
        input=text,
        text=True,
        errors="replace",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd="/",
        env=plain_environment(),
        timeout=_TIMEOUT_SECONDS,
        check=False,
    )


def plain_environment() -> dict[str, str]:
    """Returns the environment of a server: no PG* variable of the user's reaches it."""
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


def _initdb(
    layout: PostgresLayout, folder: Path, password_file: Path, account: Account | None
) -> None:
    command = [
        str(layout.binaries / "bin" / "initdb"),
        f"--pgdata={folder}",
        f"--username={SUPERUSER}",
        f"--pwfile={password_file}",
        "--auth=scram-sha-256",
        "--encoding=UTF8",
        # The built-in provider needs no locale of the machine and sorts the same everywhere.
        "--locale=C",
        "--locale-provider=builtin",
        "--builtin-locale=C.UTF-8",
        "--data-checksums",
        "--no-instructions",
        "--no-sync",
    ]
    _check(run_as(account, command))


def _sync(layout: PostgresLayout, folder: Path, account: Account | None) -> None:
    """Makes the whole cluster durable in one go: far cheaper than file by file, step by step."""
    initdb = str(layout.binaries / "bin" / "initdb")
    _check(run_as(account, [initdb, "--sync-only", "--sync-method=syncfs", f"--pgdata={folder}"]))


def _single(
    layout: PostgresLayout, folder: Path, database: str, sql: str, account: Account | None
) -> None:
    """Runs SQL, one statement a line, before anyone can connect."""
    postgres = str(layout.binaries / "bin" / "postgres")
    # Single-user mode goes on after an error unless it is told not to. `_sync` comes last.
    settings = ("exit_on_error=on", "fsync=off", "log_checkpoints=off")
    options = [part for setting in settings for part in ("-c", setting)]
    _check(run_as(account, [postgres, "--single", "-D", str(folder), *options, database], sql))


def _check(result: subprocess.CompletedProcess[str]) -> None:
    if result.returncode == 0:
        return
    lines = [line.strip() for line in result.stdout.splitlines() if line.strip()]
    if os.strerror(errno.ENOSPC) in result.stdout:
        raise StartError(
            ExitCode.DISK_FULL, "No space is left for the database: free some, then run again."
        )
    telling = [line for line in lines if "error:" in line or "FATAL" in line or "ERROR" in line]
    reason = (telling or lines or ["no output"])[-1]
    raise StartError(ExitCode.UNAVAILABLE, f"PostgreSQL could not be set up: {reason}")


def _give(path: Path, account: Account | None) -> None:
    if account is not None:
        os.chown(path, account.uid, account.gid)
