"""Reads the kernel's events as fast as they come, so that its short queue seldom overflows."""

from __future__ import annotations

import errno
import os
import select
import threading
from collections import deque
from typing import TYPE_CHECKING

from services.io.watch.inotify import Inotify, overflow, parse

if TYPE_CHECKING:
    from services.io.watch.inotify import RawEvent


class Source:
    """The events of one tree, read by a thread of its own and held until they are taken.

    What it holds is bounded by bytes; what comes beyond is dropped, and an overflow is told in its
    place, as the kernel does. Where the system allows no instance there are no events: every watch
    is refused.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._chunks: deque[bytes] = deque()
        self._held_bytes = 0
        self._overflowed = False
        self._woken = False
        self._error: OSError | None = None
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        try:
            self._inotify = Inotify()
        except OSError:
            return
        self._stop_read, self._stop_write = os.pipe()
        self._thread = threading.Thread(target=self._read_all, name="io-watch-read", daemon=True)
        self._thread.start()

    def add(self, folder_fd: int) -> int:
        """Watches a folder and returns the watch.

        Raises:
            OSError: the folder may not be watched, or the system allows no more watches.
        """
        if self._thread is None:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return self._inotify.add(folder_fd)

    def remove(self, wd: int) -> None:
        """Ends a watch."""
        if self._thread is not None:
            self._inotify.remove(wd)

    def take(self, timeout_seconds: float) -> list[RawEvent]:
        """Returns the next events, at most a read's; none after the time, or when woken.

        Raises:
            OSError: the kernel's events cannot be read any more.
        """
        with self._changed:
            self._changed.wait_for(self._has_news, max(0.0, timeout_seconds))
            self._woken = False
            if self._chunks:
                chunk = self._chunks.popleft()
                self._held_bytes -= len(chunk)
            elif self._error is not None:
                raise self._error
            elif self._overflowed:
                self._overflowed = False
                chunk = overflow()
            else:
                return []
        return list(parse(chunk))

    def wake(self) -> None:
        """Has the taker look up, from any thread."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def close(self) -> None:
        """Ends the thread and every watch."""
        if self._thread is None:
            return
        os.write(self._stop_write, b"x")
        self._thread.join()
        self._thread = None
        self._inotify.close()
        os.close(self._stop_read)
        os.close(self._stop_write)

    def _has_news(self) -> bool:
        return bool(self._chunks) or self._overflowed or self._woken or self._error is not None

    def _read_all(self) -> None:
        try:
            self._read_until_stopped()
        except OSError as error:  # told to the taker: a reader that ended alone would be silence
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _read_until_stopped(self) -> None:
        poll = select.poll()
        poll.register(self._inotify.fd, select.POLLIN)
        poll.register(self._stop_read, select.POLLIN)
        while all(fd != self._stop_read for fd, _ in poll.poll()):
            data = self._inotify.read()
            if data:
                self._keep(data)

    def _keep(self, data: bytes) -> None:
        with self._changed:
            if self._overflowed or self._held_bytes + len(data) > self._max_bytes:
                # What is held is older than what is lost: it is taken first, then the overflow.
                self._overflowed = True
            else:
                self._chunks.append(data)
                self._held_bytes += len(data)
            self._changed.notify_all()
