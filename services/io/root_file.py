"""The roots that callers added, in a file that outlasts restarts and that replicas share.

The file is replaced whole, never changed in place, so a reader needs no lock: it sees the old list
or the new one. Writers take turns by a lock of the operating system, which a dead one cannot hold.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.io.errors import StateFolderError
from services.io.model import ROOT_ID, Root, SymlinkPolicy
from services.io.signatures import proves_unchanged, signature_of
from services.runtime.durable import flush_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from services.io.model import Signature

FILE_NAME = "roots.json"
FORMAT_VERSION = 1
MAX_FILE_BYTES = 64 << 20
LOCK_TIMEOUT_SECONDS = 5.0
_LOCK_POLL_SECONDS = 0.01
_PRIVATE_FILE, _PRIVATE_FOLDER = 0o600, 0o700
_WRITE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC


class RootFile:
    """The list of added roots in a state folder; for any thread."""

    def __init__(self, folder: str, *, lock_timeout_seconds: float = LOCK_TIMEOUT_SECONDS) -> None:
        self._folder = Path(folder)
        self._path = self._folder / FILE_NAME
        self._lock_timeout_seconds = lock_timeout_seconds
        self._seen: Signature | None = None

    def has_changed(self) -> bool:
        """Tells whether the file may hold something else than what `read` last returned.

        A missing file has not changed: the list is emptied by writing an empty one, so a file that
        vanished is a folder out of reach.
        """
        try:
            status = self._path.stat()
        except OSError:
            return False
        return self._seen is None or not proves_unchanged(self._seen, signature_of(status))

    def read(self) -> list[Root] | None:
        """Returns the roots, None when there is no file.

        Raises:
            StateFolderError: the file cannot be read, or is not what this version writes.
        """
        try:
            with self._path.open("rb") as file:
                status, read_at_ns = os.fstat(file.fileno()), time.time_ns()
                data = file.read(MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateFolderError.of(error, "cannot be read") from None
        roots = _decoded(data)
        self._seen = signature_of(status, read_at_ns)
        return roots

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other writers out, of this and of other processes.

        Raises:
            StateFolderError: the folder cannot be written to, or another writer takes too long.
        """
        try:
            self._folder.mkdir(_PRIVATE_FOLDER, parents=True, exist_ok=True)
            fd = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _PRIVATE_FILE)
        except OSError as error:
            raise StateFolderError.of(error, "cannot be written to") from None
        try:
            _lock(fd, self._lock_timeout_seconds)
            yield
        finally:
            os.close(fd)

    def write(self, roots: Sequence[Root]) -> None:
        """Replaces the list, on the disk when this returns; call it inside of `locked`.

        Raises:
            StateFolderError: the folder cannot be written to. The old list stays, or, when the
                disk failed last of all, either list.
        """
        # One name for all writers, who hold the lock: what a killed one left is written over.
        new = Path(f"{self._path}.new")
        try:
            with os.fdopen(os.open(new, _WRITE_FLAGS, _PRIVATE_FILE), "wb") as file:
                file.write(_encoded(roots))
                file.flush()
                os.fsync(file.fileno())
            new.replace(self._path)
            flush_folder(self._folder)
        except OSError as error:
            with suppress(OSError):
                new.unlink()
            raise StateFolderError.of(error, "cannot be written to") from None


def _lock(fd: int, timeout_seconds: float) -> None:
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise StateFolderError("Another replica holds the state folder.") from None
            time.sleep(_LOCK_POLL_SECONDS)
        except OSError as error:
            raise StateFolderError.of(error, "cannot be locked") from None
        else:
            return


def _encoded(roots: Sequence[Root]) -> bytes:
    entries = [
        {
            "id": root.id,
            "path": root.path,
            "symlink_policy": root.symlink_policy.value,
            "read_only": root.read_only,
        }
        for root in roots
    ]
    return json.dumps({"version": FORMAT_VERSION, "roots": entries}, indent=1).encode() + b"\n"


def _decoded(data: bytes) -> list[Root]:
    try:
        return [_decoded_root(entry) for entry in _entries(data)]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise StateFolderError(
            f"{FILE_NAME} in the state folder is damaged, or of another version."
        ) from None


def _entries(data: bytes) -> list[dict[str, Any]]:
    document = json.loads(data) if len(data) <= MAX_FILE_BYTES else {}
    if document["version"] != FORMAT_VERSION:
        raise ValueError(FILE_NAME)
    entries: list[dict[str, Any]] = document["roots"]
    return entries


def _decoded_root(entry: dict[str, Any]) -> Root:
    root_id, path, read_only = entry["id"], entry["path"], entry["read_only"]
    is_valid = ROOT_ID.fullmatch(root_id) and path.startswith("/")
    if not is_valid or not isinstance(read_only, bool):
        raise ValueError(FILE_NAME)
    return Root(root_id, path, SymlinkPolicy(entry["symlink_policy"]), read_only)
