"""Remembers requests in memory, for a server without a state folder: until it stops."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from services.io import metrics
from services.io.changes import WrittenFile
from services.io.edit_records import Record, is_final
from services.io.errors import RequestIdReusedError
from services.io.journal_room import JournalLimits

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from services.io.changes import Outcome

MAX_ENTRIES = 10_000


class MemoryJournal:
    """A journal in memory; for any thread. The oldest requests are forgotten when it is full."""

    def __init__(
        self, limits: JournalLimits | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._limits = limits or JournalLimits(entries=MAX_ENTRIES)
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
                entry = self._entries[key] = MemoryEntry(Record(fingerprint), self._clock())
                self._entries.move_to_end(key)
                self._forget()
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
            while self._entries and self._is_old(next(iter(self._entries.values()))):
                self._entries.popitem(last=False)
            return 0 if shard else len(self._entries)  # they lie in no parts

    def unfinished(self, _shard: int) -> Iterator[Record]:
        """Yields nothing: who died took its journal along."""
        return iter(())

    def _is_old(self, entry: MemoryEntry) -> bool:
        return self._clock() - entry.begun_at > self._limits.kept_seconds

    def _forget(self) -> None:
        for key in list(self._entries)[: max(0, len(self._entries) - self._limits.entries)]:
            if not self._entries[key].is_open:
                del self._entries[key]
                metrics.EDIT_REQUESTS_FORGOTTEN.inc()


@dataclass(slots=True)
class MemoryEntry:
    """A request under way, in memory."""

    record: Record
    begun_at: float
    is_open: bool = field(default=False)

    def intend(self, record: Record) -> None:
        """Notes what is about to be put in place; see `JournalEntry`."""
        self.record = record

    def flush(self) -> None:
        """Does nothing: memory does not outlast the machine."""

    def finish(self, outcomes: Sequence[Outcome], unmade: Collection[int] = ()) -> None:
        """Notes how each change ended; see `JournalEntry`."""
        kept = tuple(_kept(outcome) if is_final(outcome) else None for outcome in outcomes)
        self.record = replace(self.record, outcomes=kept).without_intents(unmade)

    def close(self) -> None:
        """Lets the next request of this id in."""
        self.is_open = False


def _kept(outcome: Outcome) -> Outcome:
    """Returns an outcome free of the traceback, whose frames hold the bytes of files."""
    if isinstance(outcome, WrittenFile):
        return outcome
    return type(outcome)(outcome.message, metadata=outcome.metadata)
