"""Ends a process with the one that started it."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int) -> bool:
    """Has the kernel kill this process when the thread that started it ends, whatever it is doing.

    `parent` is the process id of the parent. Returns False when that is gone already: the caller
    has to end by itself.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    return os.getppid() == parent
