"""Makes of many changes the fewest events that lead from what was told to what is there.

Nothing is decided event by event. For each path that is touched it is kept whether callers know of
a file there, and which file is there now; `NET` has the answer for every pair.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from services.io.watch.model import EventType, FileEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Now(StrEnum):
    """What a path holds at the end, seen from the file that callers know of there."""

    NOTHING = "nothing"
    NOTHING_AGAIN = "nothing, and callers were told of the path before"
    AWAY = "nothing; its file lies elsewhere"
    OWN = "its own file, untouched"
    OWN_AGAIN = "its own file, which was away"
    OWN_CHANGED = "its own file, changed"
    NEW = "another file"
    MOVED = "the file of a path that is empty now"
    MOVED_CHANGED = "the file of a path that is empty now, changed"


NET: dict[tuple[bool, Now], tuple[EventType, ...]] = {
    (False, Now.NOTHING): (),
    (False, Now.NOTHING_AGAIN): (EventType.REMOVED,),
    (False, Now.NEW): (EventType.CREATED,),
    (False, Now.MOVED): (EventType.RENAMED,),
    (False, Now.MOVED_CHANGED): (EventType.RENAMED, EventType.MODIFIED),
    (True, Now.NOTHING): (EventType.REMOVED,),
    (True, Now.NOTHING_AGAIN): (EventType.REMOVED,),
    (True, Now.AWAY): (),
    (True, Now.OWN): (),
    (True, Now.OWN_AGAIN): (EventType.MODIFIED,),
    (True, Now.OWN_CHANGED): (EventType.MODIFIED,),
    (True, Now.NEW): (EventType.MODIFIED,),
    (True, Now.MOVED): (EventType.RENAMED,),
    (True, Now.MOVED_CHANGED): (EventType.RENAMED, EventType.MODIFIED),
}
"""By whether callers know of a file at the path, and what it holds now: the events.

A path whose file lies elsewhere is told by that other path's RENAMED. RENAMED onto a known path
replaces what was there. A file that went and came back is told, though nothing changed: whoever
looked at it for an earlier event may have found nothing, and would not look again. So is one that
came and went where callers were told of one before: they may have found it.
"""


@dataclass(slots=True)
class File:
    """A file on its way: the path under which callers know it, if they do, and if it changed."""

    known_as: str | None = None
    changed: bool = True


@dataclass(slots=True)
class Entry:
    """A path that was touched since the last events."""

    known: bool
    file: File | None
    time_ns: int
    origin_id: str = ""
    was_lifted: bool = False
    """Whether there was no file for a while."""


class Changes:
    """What happened since the last events; for one thread.

    Every method takes whether callers know of a file at the path; the first answer counts, as later
    ones come from the changes themselves.
    """

    def __init__(self, max_entries: int) -> None:
        self.is_overfull = False
        """Whether more paths were touched than are kept: what is kept is not all."""
        self.is_muted = False
        """Whether nothing is noted, as callers must scan anyway."""
        self.touches = 0
        """How often something was noted, ever."""
        self._max_entries = max_entries
        self._entries: dict[str, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, path: str) -> bool:
        return path in self._entries

    def paths(self) -> list[str]:
        """Returns the paths that were touched, the first first."""
        return list(self._entries)

    def has_file(self, path: str) -> bool:
        """Tells whether a touched path holds a file; False for one that was not touched."""
        entry = self._entries.get(path)
        return entry is not None and entry.file is not None

    def notice(self, path: str, time_ns: int, *, known: bool) -> Entry:
        """Notes that a path is to be looked at, and returns what is known of it."""
        self.touches += 1
        entry = self._entries.get(path)
        if entry is None:
            entry = Entry(known, File(path, changed=False) if known else None, time_ns)
            self._keep(path, entry)
        entry.time_ns = time_ns
        return entry

    def put(self, path: str, time_ns: int, *, known: bool, file: File | None = None) -> None:
        """Notes that a file came to a path: a new one, or `file` that was lifted elsewhere."""
        self.notice(path, time_ns, known=known).file = file or File()

    def change(self, path: str, time_ns: int, *, known: bool) -> None:
        """Notes that the file at a path was written to."""
        entry = self.notice(path, time_ns, known=known)
        if entry.file is None:
            entry.file = File()
        else:
            entry.file.changed = True

    def lift(self, path: str, time_ns: int, *, known: bool) -> File | None:
        """Notes that the file at a path is gone from there, and returns it."""
        entry = self.notice(path, time_ns, known=known)
        file, entry.file = entry.file, None
        entry.was_lifted = True
        return file

    def found(self, path: str, origin_id: str) -> None:
        """Notes what a look at the disk told: there is a file."""
        entry = self._entries[path]
        entry.file = entry.file or File()
        entry.origin_id = origin_id

    def missed(self, path: str) -> None:
        """Notes what a look at the disk told: there is no file that is taken."""
        self._entries[path].file = None

    def take_events(
        self, told_of: Callable[[set[str]], set[str]] = lambda _: set()
    ) -> list[FileEvent]:
        """Returns the events that tell all changes, and forgets them.

        `told_of` returns which of some paths callers were told of, as far as that is still known.

        Each path is the subject of one event, or of RENAMED and MODIFIED, and no path from which a
        file was renamed is the subject of another: the order among paths does not matter.
        """
        away = {
            entry.file.known_as
            for path, entry in self._entries.items()
            if entry.file is not None and entry.file.known_as != path
        }
        asked = {path for path, e in self._entries.items() if _is_asked_for(e)}
        again = told_of(asked) if asked else asked
        events: list[FileEvent] = []
        for path, entry in self._entries.items():
            if _is_no_echo(path, entry, is_again=path in again):
                entry.origin_id = ""
            now = self._now(path, entry, is_away=path in away, is_again=path in again)
            events.extend(_events_of(path, entry, now))
        self.forget()
        return events

    def forget(self) -> None:
        """Forgets all changes."""
        self._entries.clear()
        self.is_overfull = False

    def _keep(self, path: str, entry: Entry) -> None:
        if len(self._entries) >= self._max_entries:
            self.is_overfull = True
        elif not self.is_muted:
            self._entries[path] = entry

    def _now(self, path: str, entry: Entry, *, is_away: bool, is_again: bool) -> Now:
        file = entry.file
        if file is None:
            gone = Now.NOTHING_AGAIN if is_again else Now.NOTHING
            return Now.AWAY if entry.known and is_away else gone
        if file.known_as is None:
            return Now.NEW
        if file.known_as == path:
            if file.changed:
                return Now.OWN_CHANGED
            return Now.OWN_AGAIN if entry.was_lifted else Now.OWN
        if self._entries[file.known_as].file is not None:
            # Its old path holds a file again, as after a save that keeps a backup: told as a move,
            # the backup would be the file and the file a new one.
            return Now.NEW
        return Now.MOVED_CHANGED if file.changed else Now.MOVED


def _is_asked_for(entry: Entry) -> bool:
    """Tells whether it matters if callers were told of a path of which they know no file."""
    return not entry.known and (entry.file is None or entry.origin_id != "")


def _is_no_echo(path: str, entry: Entry, *, is_again: bool) -> bool:
    """Tells whether a file came to its path by another way than a write, or may have.

    A file that was renamed, or was away, is the version that was written still, maybe at the same
    place; its writer has to hear of it.
    """
    if entry.file is None or entry.was_lifted or (is_again and not entry.known):
        return True
    return entry.file.known_as not in {None, path}


def _events_of(path: str, entry: Entry, now: Now) -> Iterator[FileEvent]:
    for kind in NET[entry.known, now]:
        old_path = ""
        if kind is EventType.RENAMED:
            assert entry.file is not None
            assert entry.file.known_as is not None
            old_path = entry.file.known_as
        yield FileEvent(kind, path, old_path, entry.origin_id, entry.time_ns)
