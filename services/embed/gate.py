"""Forwards of a model side by side, or a suspect one alone."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class SuspectGate:
    """Lets threads in together, or one alone; who wants to be alone goes first."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = 0
        self._suspects = 0
        self._alone = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Yields while no suspect runs or waits."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone and not self._suspects)
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Yields while nothing else runs."""
        with self._changed:
            self._suspects += 1
            self._changed.wait_for(lambda: not self._alone and not self._running)
            self._suspects -= 1
            self._alone = True
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()
