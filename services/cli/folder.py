"""The data folder: what lies where, whose it is, and one command at a time."""

from __future__ import annotations

import fcntl
import json
import os
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from services.cli.files import write_atomic
from services.runtime.exits import ExitCode, StartError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

VARIABLE = "LODESTONE_DATA_DIR"
FORMAT = 1
LOCK_TIMEOUT_SECONDS = 30.0
_TELL_AFTER_SECONDS = 0.5
_ROOT_DEFAULT = Path("/var/lib/lodestone")
_MARKER = "lodestone.json"
_LOCK = "lock"
_BEFORE_MARKER = frozenset({_LOCK, f"{_MARKER}.tmp"})
"""What a kill during the very first command may leave in a folder that is ours."""


@dataclass(frozen=True, slots=True)
class DataFolder:
    """A folder that holds one index and everything that serves it."""

    root: Path

    @property
    def marker(self) -> Path:
        """File that says that the folder is ours, and of which format."""
        return self.root / _MARKER

    @property
    def lock(self) -> Path:
        """File that the command holds which starts or stops processes."""
        return self.root / _LOCK

    @property
    def state(self) -> Path:
        """File that says which processes run."""
        return self.root / "state.json"

    @property
    def postgres(self) -> Path:
        """Data of the embedded PostgreSQL."""
        return self.root / "postgres"

    @property
    def postgres_password(self) -> Path:
        """Password of the embedded PostgreSQL."""
        return self.root / "postgres.password"

    @property
    def postgres_binaries(self) -> Path:
        """Copies of PostgreSQL, where its account cannot reach the installed one."""
        return self.root / "postgres-bin"

    @property
    def logs(self) -> Path:
        """One log a process."""
        return self.root / "logs"

    @property
    def traces(self) -> Path:
        """Finished spans, for `lodestone trace`."""
        return self.root / "traces"

    @property
    def models(self) -> Path:
        """Converted models."""
        return self.root / "models"

    @property
    def io_state(self) -> Path:
        """What io keeps: answered edits, added roots."""
        return self.root / "io"

    def log(self, process: str) -> Path:
        """Log file of a process."""
        return self.logs / f"{process}.log"


def default_root(environment: Mapping[str, str]) -> Path:
    """Returns the folder that is used when the command line names none."""
    if environment.get(VARIABLE):
        return Path(environment[VARIABLE]).absolute()
    if os.geteuid() == 0:
        # Root's home is closed to the account that PostgreSQL runs as.
        return _ROOT_DEFAULT
    from platformdirs import user_data_path

    return user_data_path("lodestone", appauthor=False)


def find_folder(root: Path) -> DataFolder | None:
    """Returns the data folder at `root`, None when there is nothing yet; changes nothing.

    Raises:
        StartError: it is not a folder of ours, or of another format.
    """
    folder = DataFolder(root)
    if not root.exists():
        return None
    if not root.is_dir():
        raise StartError(ExitCode.DATA_FOLDER, f"{root} is not a folder.")
    if folder.marker.exists():
        _check_format(folder)
        return folder
    strange = {entry.name for entry in root.iterdir()} - _BEFORE_MARKER
    if strange and folder.marker.exists():
        return find_folder(root)  # another command has just made it: the marker comes first
    if strange:
        raise StartError(
            ExitCode.DATA_FOLDER,
            f"{root} holds files and is not a Lodestone data folder; nothing was changed. "
            "Name an empty or a new folder with --data-dir.",
        )
    return None


def open_folder(root: Path, tell: Callable[[str], None]) -> DataFolder:
    """Returns the data folder at `root`, and makes it when there is nothing yet.

    Raises:
        StartError: as `find_folder`.
    """
    found = find_folder(root)
    if found is not None:
        return found
    root.mkdir(mode=0o755, parents=True, exist_ok=True)
    folder = DataFolder(root)
    with locked(folder, tell):
        if not folder.marker.exists():
            # Root's PostgreSQL runs as another account, which must be able to pass through.
            root.chmod(0o711 if os.geteuid() == 0 else 0o700)
            created = datetime.now(UTC).isoformat(timespec="seconds")
            write_atomic(folder.marker, json.dumps({"format": FORMAT, "created_at": created}))
    return folder


@contextmanager
def locked(
    folder: DataFolder,
    tell: Callable[[str], None],
    timeout_seconds: float = LOCK_TIMEOUT_SECONDS,
) -> Iterator[None]:
    """Holds the folder's lock, which dies with the process that holds it.

    Raises:
        StartError: another command holds it for longer than the timeout.
    """
    descriptor = os.open(folder.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _take(descriptor, folder, tell, timeout_seconds)
        with suppress(OSError):  # it tells others who holds it, and a disk may be full
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _take(
    descriptor: int, folder: DataFolder, tell: Callable[[str], None], timeout_seconds: float
) -> None:
    begin = time.monotonic()
    told = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited = time.monotonic() - begin
        else:
            return
        owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
        if waited > timeout_seconds:
            raise StartError(
                ExitCode.DATA_FOLDER,
                f"{folder.root} is locked by another lodestone command (pid {owner}): wait for it "
                "to end, then try again.",
            )
        if waited > _TELL_AFTER_SECONDS and not told:
            tell(f"Waiting for another lodestone command (pid {owner}) ...")
            told = True
        time.sleep(0.05)


def _check_format(folder: DataFolder) -> None:
    try:
        found = json.loads(folder.marker.read_text("utf-8")).get("format")
    except (ValueError, AttributeError):
        found = "unknown"
    if found != FORMAT:
        raise StartError(
            ExitCode.DATA_FOLDER,
            f"{folder.root} is of format {found}, this version reads {FORMAT}: use the Lodestone "
            "that made it, or start anew with another --data-dir.",
        )
