"""Keeps the newest events of a tree, so that each caller reads at a pace of its own."""

from __future__ import annotations

import base64
import binascii
import secrets
import struct
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from services.runtime.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from services.io.watch.model import FileEvent

_ID_BYTES = 16
_TOKEN = struct.Struct(f">B{_ID_BYTES}sQ")
_TOKEN_VERSION = 1
_MAX_TOKEN_CHARACTERS = 64


class EventLog:
    """The events of one watch of one tree, bounded by number and age; for any thread.

    A position counts the events before it. A resume token is the log's random id and a position:
    what another process, or a watch that ended, gave out is known to be foreign.
    """

    def __init__(
        self, max_events: int, max_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._id = secrets.token_bytes(_ID_BYTES)
        self._max_events = max_events
        self._max_seconds = max_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._events: list[FileEvent] = []
        self._first = 0
        self._appended: deque[tuple[float, int]] = deque()
        """When events came, and the position after them."""

    @property
    def end(self) -> int:
        """The position after the newest event."""
        with self._lock:
            return self._first + len(self._events)

    def append(self, events: Sequence[FileEvent]) -> None:
        """Adds events and forgets the oldest beyond the bounds."""
        with self._lock:
            self._events.extend(events)
            self._appended.append((self._clock(), self._first + len(self._events)))
            self._forget()

    def forget_old(self) -> None:
        """Forgets what is too old."""
        with self._lock:
            self._forget()

    def read(self, position: int, max_events: int) -> list[FileEvent] | None:
        """Returns events after a position, the oldest first; None when some are forgotten."""
        with self._lock:
            if position < self._first:
                return None
            start = position - self._first
            return self._events[start : start + max_events]

    def told_of(self, paths: set[str]) -> set[str]:
        """Returns the paths of which the kept events tell."""
        with self._lock:
            events = list(self._events)
        return {path for event in events for path in (event.path, event.old_path) if path in paths}

    def token(self, position: int) -> str:
        """Returns the resume token of a position."""
        raw = _TOKEN.pack(_TOKEN_VERSION, self._id, position)
        return base64.urlsafe_b64encode(raw).decode().rstrip("=")

    def position(self, token: str) -> int | None:
        """Returns the position of a token; None when it is foreign or too old.

        Raises:
            InvalidRequestError: no server of ours gave it out.
        """
        log_id, position = _read_token(token)
        with self._lock:
            if log_id != self._id or position > self._first + len(self._events):
                return None
            return position if position >= self._first else None

    def _forget(self) -> None:
        keep_from = self._first + len(self._events) - self._max_events
        oldest = self._clock() - self._max_seconds
        while self._appended and (
            self._appended[0][0] < oldest or self._appended[0][1] <= keep_from
        ):
            _, end = self._appended.popleft()
            keep_from = max(keep_from, end)
        drop = keep_from - self._first
        # A quarter at a time, as dropping moves all the others.
        if drop > self._max_events // 4 or (drop > 0 and drop == len(self._events)):
            del self._events[:drop]
            self._first = keep_from


def _read_token(token: str) -> tuple[bytes, int]:
    try:
        if len(token) > _MAX_TOKEN_CHARACTERS:
            raise ValueError  # noqa: TRY301 - all that is wrong with it is one error
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        version, log_id, position = _TOKEN.unpack(raw)
    except (ValueError, binascii.Error, struct.error):
        version, log_id, position = 0, b"", 0
    if version != _TOKEN_VERSION:
        raise InvalidRequestError(
            "The resume token is not one of this service.",
            metadata={"resume_token": "must be one that a response gave"},
        )
    return log_id, position
