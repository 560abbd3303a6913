"""The state file: which processes run, where they listen, and with which settings."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.cli.files import write_atomic
from services.cli.processes import ProcessId, is_alive
from services.cli.sockets import POSTGRES_SOCKET

if TYPE_CHECKING:
    from collections.abc import Mapping

POSTGRES = "postgres"
SERVICES = ("io", "embed", "indexer")


@dataclass(frozen=True, slots=True)
class ProcessState:
    """One process that the command line started."""

    process: ProcessId
    address: str
    settings: Mapping[str, str] = field(default_factory=dict)
    """Digest of each setting that the user gave it, by name."""
    log_start: int = 0
    """Where its lines begin in its log, in bytes."""


@dataclass(frozen=True, slots=True)
class StackState:
    """All processes over one data folder."""

    processes: Mapping[str, ProcessState] = field(default_factory=dict)
    run: str = ""
    """Folder of the sockets."""
    roots: str = ""
    """`LODESTONE_IO_ROOTS` of the running io service."""
    embedded: bool = True
    """Whether the indexer uses the embedded PostgreSQL."""
    ready: bool = False
    """Whether all of them answered that they serve."""

    @property
    def needed(self) -> tuple[str, ...]:
        """Names of the processes that must run."""
        return (POSTGRES, *SERVICES) if self.embedded else SERVICES

    def dead(self) -> list[str]:
        """Returns the names of those that must run and do not."""
        return [name for name in self.needed if not self.runs(name)]

    def cut_off(self) -> list[str]:
        """Returns the names of those that served and whose socket is gone, as of a cleaned `/tmp`.

        They run on, and nobody reaches them any more.
        """
        if not self.ready:
            return []
        return [name for name in self.needed if self.runs(name) and not self._has_socket(name)]

    def _has_socket(self, name: str) -> bool:
        address = self.processes[name].address
        if name != POSTGRES and not address.startswith("unix:"):
            return True
        socket = Path(address.removeprefix("unix:"))
        try:
            return (socket / POSTGRES_SOCKET if name == POSTGRES else socket).exists()
        except PermissionError:  # PostgreSQL's folder is closed to all but its own account
            return True

    def runs(self, name: str) -> bool:
        """Tells whether a process runs."""
        return name in self.processes and is_alive(self.processes[name].process)


def read_state(path: Path) -> StackState:
    """Returns what the file says; a missing or foreign file says that nothing runs."""
    try:
        raw = json.loads(path.read_text("utf-8"))
        processes = {name: _process(entry) for name, entry in raw["processes"].items()}
        return StackState(
            processes=processes,
            run=str(raw["run"]),
            roots=str(raw["roots"]),
            embedded=bool(raw["embedded"]),
            ready=bool(raw["ready"]),
        )
    except FileNotFoundError:
        return StackState()
    except (ValueError, KeyError, TypeError, AttributeError):
        return StackState()


def write_state(path: Path, state: StackState) -> None:
    """Replaces the file as a whole."""
    write_atomic(path, json.dumps(asdict(state), indent=1))


def _process(entry: Any) -> ProcessState:
    return ProcessState(
        process=ProcessId(int(entry["process"]["pid"]), str(entry["process"]["started"])),
        address=str(entry["address"]),
        settings={str(name): str(digest) for name, digest in entry["settings"].items()},
        log_start=int(entry.get("log_start", 0)),
    )
