"""Repeats system calls that a signal interrupts: Python does it for files, not for names."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_INTERRUPTIONS = 100


def insist(call: Callable[[], None]) -> None:
    """Makes a call until no signal interrupts it.

    Raises:
        OSError: as the operating system says, EINTR after `MAX_INTERRUPTIONS`.
    """
    for _ in range(MAX_INTERRUPTIONS):
        with suppress(InterruptedError):
            call()
            return
    raise OSError(errno.EINTR, os.strerror(errno.EINTR))
