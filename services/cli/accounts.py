"""The unprivileged account that PostgreSQL runs as, and what that account can reach."""

from __future__ import annotations

import os
import pwd
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.runtime.exits import ExitCode, StartError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

USER_VARIABLE = "LODESTONE_POSTGRES_USER"
_DEFAULT_USERS = ("postgres", "nobody")
_BECOME = """
import os, sys
os.setgroups([])
os.setgid(int(sys.argv[1]))
os.setuid(int(sys.argv[2]))
os.execv(sys.argv[3], sys.argv[3:])
"""


@dataclass(frozen=True, slots=True)
class Account:
    """A user of this machine and its first group."""

    name: str
    uid: int
    gid: int


def choose_account(environment: Mapping[str, str]) -> Account | None:
    """Returns who PostgreSQL runs as; None is the caller's own account.

    PostgreSQL refuses to run as root, so root lends it another account.

    Raises:
        StartError: the named account does not exist or is root.
    """
    wanted = environment.get(USER_VARIABLE, "")
    if os.geteuid() != 0:
        return None
    for name in (wanted,) if wanted else _DEFAULT_USERS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid == 0:
            raise StartError(
                ExitCode.USAGE,
                f"{USER_VARIABLE}={name} is root; PostgreSQL refuses to run as root.",
            )
        return Account(name, entry.pw_uid, entry.pw_gid)
    if wanted:
        raise StartError(ExitCode.USAGE, f"{USER_VARIABLE}={wanted}: there is no such user.")
    raise StartError(
        ExitCode.USAGE,
        f"PostgreSQL does not run as root: set {USER_VARIABLE} to an unprivileged user.",
    )


def owner_of(folder: Path) -> Account | None:
    """Returns the account that a folder of PostgreSQL belongs to; None is the caller's own."""
    status = folder.stat()
    if os.geteuid() != 0 or status.st_uid == 0:
        return None
    try:
        name = pwd.getpwuid(status.st_uid).pw_name
    except KeyError:
        name = str(status.st_uid)
    return Account(name, status.st_uid, status.st_gid)


def command_as(account: Account | None, command: list[str]) -> list[str]:
    """Returns a command that becomes another as the account, under the same process id.

    subprocess gives a child to another user between fork and exec, and a process that is forked
    runs what libraries registered for forks: gRPC starts its threads anew, and when these find
    their descriptors closed they abort the child before it is the command. A child that changes
    nothing is spawned by vfork, which runs nothing of that.
    """
    if account is None:
        return command
    ids = [str(account.gid), str(account.uid)]
    return [sys.executable, "-I", "-S", "-c", _BECOME, *ids, *command]


def first_closed(path: Path, account: Account) -> Path | None:
    """Returns the outermost folder on the way to `path`, itself included, that is closed.

    Goes by permission bits alone; folders that do not exist yet are left out.
    """
    for folder in [*reversed(path.parents), path]:
        if folder.exists() and not _may_enter(folder, account):
            return folder
    return None


def _may_enter(folder: Path, account: Account) -> bool:
    status = folder.stat()
    if status.st_uid == account.uid:
        return bool(status.st_mode & 0o100)
    if status.st_gid == account.gid:
        return bool(status.st_mode & 0o010)
    return bool(status.st_mode & 0o001)
