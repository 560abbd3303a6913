"""Remembers requests in memory, for a server without a state folder: until it stops."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING

from services.io import metrics
from services.io.changes import WrittenFile
from services.io.edit_records import Record, is_final
from services.io.errors import RequestIdReusedError
from services.io.journal_room import LEAST_KEPT_SECONDS, JournalLimits, too_many_requests

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from services.io.changes import Outcome


class MemoryJournal:
    """A journal in memory; for any thread.

    When it is full the oldest requests are forgotten, but none younger than `LEAST_KEPT_SECONDS`.
    As on a disk, the age of a request is that of what was noted of it last: of its answer.
    """

    def __init__(
        self, limits: JournalLimits | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._limits = limits or JournalLimits()
        self._clock = clock
        self._entries: OrderedDict[str, MemoryEntry] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, request_id: str, fingerprint: bytes) -> MemoryEntry | None:
        """Opens the entry of a request, or returns None; see `Journal`."""
        key = request_id.lower()
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None and entry.is_open:
                return None
            if entry is None or self._is_old(entry):
                self._entries.pop(key, None)
                self._make_room()
                entry = MemoryEntry(
                    Record(fingerprint),
                    self._clock(),
                    partial(self._noted, key),
                    partial(self._drop, key),
                )
                self._entries[key] = entry
            elif entry.record.fingerprint != fingerprint:
                raise RequestIdReusedError(
                    "The request id belongs to another request.",
                    metadata={"request_id": request_id},
                )
            entry.is_open = True
            return entry

    def expire(self, shard: int) -> int:
        """Forgets what is too old; see `Journal`."""
        with self._lock:
            old = takewhile(lambda item: self._is_old(item[1]), self._entries.items())
            for key in [key for key, entry in old if not entry.is_open]:
                del self._entries[key]
            return 0 if shard else len(self._entries)  # they lie in no parts

    def unfinished(self, _shard: int) -> Iterator[Record]:
        """Yields nothing: who died took its journal along."""
        return iter(())

    def _noted(self, key: str) -> None:
        """Makes a request under way the newest one; nobody forgets it meanwhile."""
        with self._lock:
            self._entries[key].noted_at = self._clock()
            self._entries.move_to_end(key)

    def _drop(self, key: str) -> None:
        """Forgets a request of which nothing was noted."""
        with self._lock:
            del self._entries[key]

    def _is_old(self, entry: MemoryEntry) -> bool:
        return self._clock() - entry.noted_at > self._limits.kept_seconds

    def _make_room(self) -> None:
        """Makes room for one more entry.

        Raises:
            OverloadedError: it is full of entries that may not be forgotten yet.
        """
        if len(self._entries) < self._limits.entries:
            return
        for key, entry in self._entries.items():
            if self._clock() - entry.noted_at < LEAST_KEPT_SECONDS:
                break
            if not entry.is_open:
                if not self._is_old(entry):
                    metrics.EDIT_REQUESTS_FORGOTTEN.inc()
                del self._entries[key]
                return
        raise too_many_requests()


@dataclass(slots=True)
class MemoryEntry:
    """A request under way, in memory."""

    record: Record
    noted_at: float
    noted: Callable[[], None]
    drop: Callable[[], None]
    is_open: bool = field(default=False)
    is_noted: bool = field(default=False)

    def intend(self, record: Record) -> None:
        """Notes what is about to be put in place; see `JournalEntry`."""
        self.record = record
        self.is_noted = True
        self.noted()

    def flush(self) -> None:
        """Does nothing: memory does not outlast the machine."""

    def finish(self, outcomes: Sequence[Outcome], unmade: Collection[int] = ()) -> None:
        """Notes how each change ended; see `JournalEntry`."""
        kept = tuple(_kept(outcome) if is_final(outcome) else None for outcome in outcomes)
        self.record = replace(self.record, outcomes=kept).without_intents(unmade)
        self.is_noted = True
        self.noted()

    def close(self) -> None:
        """Lets the next request of this id in; one of which nothing was noted takes no room."""
        if self.is_noted:
            self.is_open = False
        else:
            self.drop()


def _kept(outcome: Outcome) -> Outcome:
    """Returns an outcome free of the traceback, whose frames hold the bytes of files."""
    if isinstance(outcome, WrittenFile):
        return outcome
    return type(outcome)(outcome.message, metadata=outcome.metadata)
