"""Shifts the wall clock of a Python process; found by being first on `PYTHONPATH`.

A clock that is wrong is wrong for a whole process, gRPC's core and the kernel's waits included,
which agree with each other. Here Python's is shifted alone, so gRPC's own modules, which hand
absolute times on to that core, are told the true time. (Debian's libfaketime, tried first, breaks
just this: the core waits on futexes by the kernel's clock.)

By how much, the variable `WRONG_CLOCK_SECONDS` says, or the file that `WRONG_CLOCK_FILE` names, a
double that may change at any time.
"""

from __future__ import annotations

import datetime as dt
import mmap
import os
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

_Wrong = Callable[[], float]
_true_time, _true_time_ns = time.time, time.time_ns
_true_datetime = dt.datetime


def _wrong_seconds() -> _Wrong | None:
    if path := os.environ.get("WRONG_CLOCK_FILE"):
        with open(path, "rb") as file:  # noqa: PTH123 - pathlib is slow to import
            told = mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ)
        return lambda: float(struct.unpack("d", told[:8])[0])
    seconds = float(os.environ.get("WRONG_CLOCK_SECONDS", "0"))
    return (lambda: seconds) if seconds else None


_wrong = _wrong_seconds()


class _WrongDatetime(_true_datetime):
    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> Any:
        assert _wrong is not None
        return _true_datetime.now(tz) + dt.timedelta(seconds=_wrong())

    @classmethod
    def utcnow(cls) -> Any:
        return cls.now(dt.UTC).replace(tzinfo=None)


def _shift(wrong: _Wrong) -> None:
    def wrong_time() -> float:
        asking = sys._getframe(1).f_globals.get("__name__", "")
        return _true_time() + (0.0 if asking.startswith("grpc") else wrong())

    time.time = wrong_time
    time.time_ns = lambda: _true_time_ns() + int(wrong() * 1e9)
    dt.datetime = _WrongDatetime  # type: ignore[misc]


if _wrong is not None:
    _shift(_wrong)
