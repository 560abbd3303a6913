"""Shifts the wall clock of a Python process; found by being first on `PYTHONPATH`.

A clock that is wrong is wrong for a whole process, gRPC's core and the kernel's waits included,
which agree with each other. Here Python's is shifted alone, so gRPC's own modules, which hand
absolute times on to that core, are told the true time. (Debian's libfaketime, tried first, breaks
just this: the core waits on futexes by the kernel's clock.)
"""

from __future__ import annotations

import datetime as dt
import os
import sys
import time
from typing import Any

_SECONDS = float(os.environ.get("WRONG_CLOCK_SECONDS", "0"))
_true_time, _true_time_ns = time.time, time.time_ns
_true_datetime = dt.datetime


class _WrongDatetime(_true_datetime):
    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> Any:
        return _true_datetime.now(tz) + dt.timedelta(seconds=_SECONDS)

    @classmethod
    def utcnow(cls) -> Any:
        return cls.now(dt.UTC).replace(tzinfo=None)


def _wrong_time() -> float:
    asking = sys._getframe(1).f_globals.get("__name__", "")
    return _true_time() + (0.0 if asking.startswith("grpc") else _SECONDS)


if _SECONDS:
    time.time = _wrong_time
    time.time_ns = lambda: _true_time_ns() + int(_SECONDS * 1e9)
    dt.datetime = _WrongDatetime  # type: ignore[misc]
