"""Where the Unix sockets lie: in the data folder, or in a short one when its path is too long."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from services.runtime.exits import ExitCode, StartError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from services.cli.folder import DataFolder

POSTGRES_PORT = 5432
"""Part of the name of PostgreSQL's socket alone: nothing listens on TCP."""

POSTGRES_SOCKET = f".s.PGSQL.{POSTGRES_PORT}"
_PATH_BYTES = 107  # sun_path of Linux, less its final NUL
_LAST_BASE = "/tmp"  # noqa: S108 - a folder in it is made 0700 and refused unless it is ours
_PLAIN = re.compile(r"[A-Za-z0-9_./+@~-]+")
"""Paths that mean the same inside a gRPC address, which is a URI."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A folder for sockets."""

    root: Path

    @property
    def services(self) -> Path:
        """Sockets of the services, mode 0700."""
        return self.root / "run"

    @property
    def postgres(self) -> Path:
        """Socket of PostgreSQL, mode 0700 and owned by its account."""
        return self.root / "postgres-run"

    def socket(self, service: str) -> Path:
        """Socket of a service."""
        return self.services / f"{service}.sock"


def choose_run_folder(folder: DataFolder, environment: Mapping[str, str]) -> RunFolder:
    """Returns the data folder itself when sockets fit in it, else a short folder of the user's."""
    run = RunFolder(folder.root)
    if _fits(run):
        return run
    digest = hashlib.blake2b(os.fsencode(folder.root), digest_size=6).hexdigest()
    for base in _short_bases(environment):
        short = RunFolder(Path(base) / f"lodestone-{os.geteuid()}-{digest}")
        if _fits(short) and Path(base).is_dir():
            _own(short.root)
            return short
    raise StartError(
        ExitCode.DATA_FOLDER, f"{folder.root} is too long a path for sockets: use another."
    )


def _fits(run: RunFolder) -> bool:
    paths = (run.socket("indexer"), run.postgres / f"{POSTGRES_SOCKET}.lock")
    longest = max(len(os.fsencode(path)) for path in paths)
    return longest <= _PATH_BYTES and _PLAIN.fullmatch(str(run.root)) is not None


def _short_bases(environment: Mapping[str, str]) -> Iterator[str]:
    runtime = environment.get("XDG_RUNTIME_DIR", "")
    # Root's runtime folder is closed to the account that PostgreSQL runs as.
    if runtime and os.geteuid() != 0:
        yield runtime
    yield tempfile.gettempdir()
    yield _LAST_BASE


def _own(folder: Path) -> None:
    """Makes the folder; refuses one that somebody else put there."""
    mode = 0o711 if os.geteuid() == 0 else 0o700
    folder.mkdir(mode=mode, exist_ok=True)
    status = folder.lstat()
    if folder.is_symlink() or status.st_uid != os.geteuid() or not folder.is_dir():
        raise StartError(
            ExitCode.DATA_FOLDER,
            f"{folder} belongs to somebody else: choose a shorter --data-dir, which needs no "
            "folder for its sockets.",
        )
    folder.chmod(mode)
