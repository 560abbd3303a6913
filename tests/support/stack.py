"""The whole product for tests: the `lodestone` command over a data folder of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from services.cli.folder import DataFolder
from services.cli.processes import ProcessId, wait_gone
from services.cli.state import StackState, read_state
from tests.support.postgres import make_reachable_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

COMMAND_SECONDS = 110.0


@dataclass(frozen=True, slots=True)
class Finished:
    """A command that ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """Standard output as the one JSON value that it must be."""
        return json.loads(self.stdout)


@dataclass(frozen=True, slots=True)
class Lodestone:
    """The command over one data folder, with settings of its own."""

    root: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()
    """Command that runs the command, such as one that drops rights."""

    @property
    def folder(self) -> DataFolder:
        """The data folder."""
        return DataFolder(self.root)

    @property
    def state(self) -> StackState:
        """What the state file says."""
        return read_state(self.folder.state)

    def with_settings(self, **settings: str) -> Lodestone:
        """Returns the same with more settings; names are given without `LODESTONE_`."""
        named = {f"LODESTONE_{name}": value for name, value in settings.items()}
        return Lodestone(self.root, {**self.settings, **named}, self.prefix)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Starts a command and does not wait for it."""
        return subprocess.Popen(
            [*self.prefix, sys.executable, "-m", "services.cli", *arguments],
            env={**clean_environment(), "LODESTONE_DATA_DIR": str(self.root), **self.settings},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, timeout_seconds: float = COMMAND_SECONDS) -> Finished:
        """Runs a command to its end."""
        return finish(self.start(*arguments), timeout_seconds)

    def index(self, path: Path, *arguments: str) -> dict[str, Any]:
        """Indexes a folder, which must succeed, and returns the report."""
        done = self.run("index", str(path), "--json", *arguments)
        assert done.code == 0, done.stderr
        report: dict[str, Any] = done.json
        return report

    def search(self, query: str, path: Path, limit: int = 10) -> list[dict[str, Any]]:
        """Searches what lies beneath a folder and returns the hits."""
        done = self.run("search", query, "--path", str(path), "-k", str(limit), "--json")
        assert done.code == 0, done.stderr
        hits: list[dict[str, Any]] = done.json
        return hits

    def process(self, name: str) -> ProcessId:
        """Returns a running process by its name."""
        return self.state.processes[name].process

    def kill(self, name: str) -> None:
        """Kills a process by SIGKILL and waits until it is gone."""
        process = self.process(name)
        os.kill(process.pid, signal.SIGKILL)
        assert wait_gone(process, 10)

    def database_url(self) -> str:
        """Returns the DSN of the embedded database."""
        from services.cli.database import embedded_database
        from services.cli.sockets import choose_run_folder

        run = choose_run_folder(self.folder, os.environ)
        return embedded_database(self.folder, run, os.environ).url


def finish(process: subprocess.Popen[str], timeout_seconds: float = COMMAND_SECONDS) -> Finished:
    """Waits for a command; one that does not end in time is killed and fails the test."""
    try:
        stdout, stderr = process.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        stdout, stderr = process.communicate()
        raise AssertionError(f"the command did not end: {stdout}{stderr}") from None
    return Finished(process.returncode, stdout, stderr)


def clean_environment() -> dict[str, str]:
    """Returns the environment without settings of the one who runs the tests."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("LODESTONE_") or name == "LODESTONE_POSTGRES_USER"
    }


def lodestone(**settings: str) -> Iterator[Lodestone]:
    """Yields the product over a new data folder; stops it and removes the folder at the end."""
    base = make_reachable_folder()
    product = Lodestone(base / "data").with_settings(**settings)
    try:
        yield product
    finally:
        done = product.run("down")
        shutil.rmtree(base)
        assert done.code == 0, done.stderr


def wait_until(condition: Callable[[], bool], timeout_seconds: float, what: str) -> None:
    """Returns once the condition is true; fails when it is not in time."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_seconds} s: {what}"
        time.sleep(0.02)
