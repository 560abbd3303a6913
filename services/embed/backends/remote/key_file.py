"""The key of a provider, read from a file that may change while the service runs."""

from __future__ import annotations

import os
import stat
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_MOST_BYTES = 8192


class KeyFileError(Exception):
    """The key cannot be used; the message says why and holds nothing of the file."""


class KeyFile:
    """A key in a file that other users cannot read. Threads share it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._seen: tuple[int, ...] = ()
        self._key = ""

    def __repr__(self) -> str:
        return "KeyFile()"  # a representation may end up in a log

    def read(self) -> str:
        """Returns the key as the file holds it now.

        Raises:
            KeyFileError: the file cannot be read, others may read it, or it holds no key.
        """
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                seen = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
                if status.st_mode & (stat.S_IROTH | stat.S_IWOTH):
                    raise KeyFileError("other users can read or write it: chmod o-rw")
                with self._lock:
                    if seen != self._seen:
                        self._key = _checked(file.read(_MOST_BYTES + 1))
                        self._seen = seen
                    return self._key
        except OSError as error:
            raise KeyFileError(error.strerror or "it cannot be read") from None


def _checked(data: bytes) -> str:
    try:
        key = data.decode("ascii").strip()
    except UnicodeDecodeError:
        raise KeyFileError("it holds something that is no key") from None
    if not key or len(data) > _MOST_BYTES or not key.isprintable() or " " in key:
        raise KeyFileError("it must hold one line with the key alone")
    return key
