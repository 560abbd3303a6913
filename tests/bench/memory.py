"""Peak memory of all processes of the product together, counted so that shared pages count once."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Self

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_INTERVAL_SECONDS = 2.0


class MemoryPeak:
    """Samples the proportional set size (PSS) of process trees; use it as a context manager."""

    def __init__(self, roots: Callable[[], Iterable[int]]) -> None:
        self._roots = roots
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample_until_stopped, daemon=True)
        self.peak_bytes = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample_until_stopped(self) -> None:
        while not self._stop.wait(_INTERVAL_SECONDS):
            self.peak_bytes = max(self.peak_bytes, sum(map(_pss_bytes, self._processes())))

    def _processes(self) -> set[int]:
        found: set[int] = set()
        for root in self._roots():
            try:
                process = psutil.Process(root)
                found |= {root, *(child.pid for child in process.children(recursive=True))}
            except psutil.NoSuchProcess:
                continue
        return found


def _pss_bytes(pid: int) -> int:
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError:  # it ended
        return 0
    for line in rollup.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0
