"""Remembers the requests that wrote, so that a repeated one changes nothing twice.

One small file per request id in the state folder. Its lock (`flock`) is held while the request is
under way, so duplicates wait for the first one, also on another replica that shares the folder. A
line with the digests before and after is on the disk before the first file is put in place; so
whoever finds a request without an end can tell from the files how far it came. The end is written
but not flushed: should a power failure take it, the files still tell.
"""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from services.io.content import file_digest
from services.io.edit_records import Record, intent_line, outcome_line, read_record
from services.io.errors import DiskFullError, RequestIdReusedError
from services.io.interruptions import insist
from services.io.journal_room import JournalLimits, JournalRoom
from services.io.temporaries import same_file, try_lock
from services.runtime.durable import flush_folder
from services.runtime.errors import DependencyUnavailableError, LodestoneError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from pathlib import Path

    from services.io.changes import Outcome

SHARDS = 256
"""Folders over which entries are spread by a hash of their id: each is small enough to be listed
in one step."""

_ENTRY_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_RACE_RETRIES = 16
_RETRY_AFTER_SECONDS = 1.0


class JournalEntry(Protocol):
    """A request under way; nobody else has it until it is closed."""

    @property
    def record(self) -> Record:
        """What is known of the request from before."""

    def intend(self, record: Record) -> None:
        """Notes what is about to be put in place; it outlasts the process from here on."""

    def flush(self) -> None:
        """Makes what was noted outlast the machine."""

    def finish(self, outcomes: Sequence[Outcome], unmade: Collection[int] = ()) -> None:
        """Notes how each change ended, and of which ones nothing was put in place for sure."""

    def close(self) -> None:
        """Lets the next request of this id in."""


class Journal(Protocol):
    """Remembers requests by id."""

    def begin(self, request_id: str, fingerprint: bytes) -> JournalEntry | None:
        """Opens the entry of a request, or returns None while another one of this id has it.

        Raises:
            RequestIdReusedError: the id belongs to another request.
            OverloadedError: there is no room for another entry.
            DiskFullError, DependencyUnavailableError: the state folder cannot be used.
        """

    def expire(self, shard: int) -> int:
        """Forgets what is too old in one of `SHARDS` parts; returns how many entries are left."""

    def unfinished(self, shard: int) -> Iterator[Record]:
        """Yields the requests of a part whose process died."""


class DiskJournal:
    """A journal in a folder; for any thread, and for several processes."""

    def __init__(
        self,
        folder: Path,
        limits: JournalLimits | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder
        self._limits = limits or JournalLimits()
        self._clock = clock
        self._room = JournalRoom(self._limits.per_shard(SHARDS), clock)
        self._durable: set[Path] = set()  # folders that this process has on the disk

    def begin(self, request_id: str, fingerprint: bytes) -> DiskEntry | None:
        """Opens the entry of a request, or returns None; see `Journal`."""
        key = file_digest(request_id.lower().encode()).hex()
        shard = self._shard_path(int(key[:2], 16))
        try:
            entry = self._open(shard, key, fingerprint)
        except OSError as error:
            raise journal_error(error) from None
        if entry is not None and entry.record.fingerprint not in {b"", fingerprint}:
            entry.close()
            raise RequestIdReusedError(
                "The request id belongs to another request.", metadata={"request_id": request_id}
            )
        return entry

    def expire(self, shard: int) -> int:
        """Forgets what is too old; see `Journal`."""
        return self._room.measure(self._shard_path(shard))

    def unfinished(self, shard: int) -> Iterator[Record]:
        """Yields the requests whose process died; see `Journal`."""
        folder = self._shard_path(shard)
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            try:
                fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                if try_lock(fd):  # else its request is under way
                    record, _ = read_record(_read(fd))
                    if record.is_open:
                        yield record
            finally:
                os.close(fd)

    def _open(self, shard: Path, key: str, fingerprint: bytes) -> DiskEntry | None:
        path = shard / key
        self._make_folder(shard)
        if not path.exists():
            self._room.take(shard)
        for _ in range(_RACE_RETRIES):
            fd = os.open(path, _ENTRY_FLAGS, 0o600)
            try:
                if not try_lock(fd):
                    os.close(fd)
                    return None
                status = os.fstat(fd)
                if _is_at(path, status):
                    if self._clock() - status.st_mtime > self._limits.kept_seconds:
                        os.ftruncate(fd, 0)
                    return DiskEntry(path, fd, fingerprint)
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)  # it was forgotten between the opening and the lock
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    def _shard_path(self, shard: int) -> Path:
        return self._folder / f"{shard:02x}"

    def _make_folder(self, shard: Path) -> None:
        """Makes the folder of a part, and sees to it that it is on the disk.

        One that is there is flushed too: another process may have made it and died.
        """
        if shard in self._durable and shard.is_dir():
            return
        insist(lambda: shard.mkdir(mode=0o700, parents=True, exist_ok=True))
        above = () if self._durable else self._folder.parents[:2]  # both may be new as well
        for folder in (self._folder, *above):
            flush_folder(folder)
        self._durable.add(shard)


class DiskEntry:
    """A request under way, in a locked file."""

    def __init__(self, path: Path, fd: int, fingerprint: bytes) -> None:
        self._path = path
        self._fd = fd
        self._fingerprint = fingerprint
        data = _read(fd)
        self.record, self._end = read_record(data)
        if self._end < len(data):
            os.ftruncate(fd, self._end)

    def intend(self, record: Record) -> None:
        """Notes what is about to be put in place; see `JournalEntry`."""
        self._append(intent_line(record))

    def flush(self) -> None:
        """Makes what was noted outlast the machine; see `JournalEntry`."""
        try:
            os.fsync(self._fd)
            flush_folder(self._path.parent)
        except OSError as error:
            raise journal_error(error) from None

    def finish(self, outcomes: Sequence[Outcome], unmade: Collection[int] = ()) -> None:
        """Notes how each change ended; see `JournalEntry`."""
        self._append(outcome_line(self._fingerprint, outcomes, unmade))

    def close(self) -> None:
        """Lets the next request of this id in; one of which nothing was noted takes no room."""
        if not self._end:
            with suppress(OSError):  # it goes when it is old
                self._path.unlink()
        os.close(self._fd)

    def _append(self, line: bytes) -> None:
        rest = memoryview(line)
        try:
            while rest:
                count = os.pwrite(self._fd, rest, self._end)
                self._end += count
                rest = rest[count:]
        except OSError as error:
            raise journal_error(error) from None


def journal_error(error: OSError) -> LodestoneError:
    """Returns our error for what the operating system said of the state folder."""
    name = errno.errorcode.get(error.errno or 0, "unknown")
    metadata = {"dependency": "state folder", "errno": name}
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return DiskFullError("The disk of the state folder is full.", metadata=metadata)
    return DependencyUnavailableError(
        f"The state folder cannot be used ({name}).",
        metadata=metadata,
        retry_after_seconds=_RETRY_AFTER_SECONDS,
    )


def _read(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


def _is_at(path: Path, status: os.stat_result) -> bool:
    try:
        return same_file(path.lstat(), status)
    except FileNotFoundError:
        return False
