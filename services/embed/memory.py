"""How much memory the service holds, and whether one more model may come in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from services.embed.errors import LimitReachedError
from services.embed.fingerprint import weight_files

if TYPE_CHECKING:
    from collections.abc import Callable

_MIB = 1 << 20
_FACTOR = 2
_BUFFER_BYTES = 100 * _MIB
"""Engines keep weights as they are on disk and repacked beside, and need buffers. Measured with
87 MiB of weights after 200 texts: 210 MiB more in bfloat16, 290 MiB in float32."""


def estimate_bytes(folder: Path) -> int:
    """Returns what a model in a folder will probably take.

    A folder may hold the same weights in several formats, of which one is read.
    """
    sizes: dict[str, int] = {}
    for path in weight_files(folder):
        sizes[path.suffix] = sizes.get(path.suffix, 0) + path.stat().st_size
    return max(sizes.values(), default=0) * _FACTOR + _BUFFER_BYTES


def held_bytes() -> int:
    """Returns the memory of this process and its children; a page that they share counts once."""
    this = psutil.Process()
    return sum(_pss_bytes(process.pid) for process in (this, *this.children(recursive=True)))


class MemoryBound:
    """Refuses models that would take more than the service may hold."""

    def __init__(self, limit_bytes: int, measure: Callable[[], int] = held_bytes) -> None:
        self._limit_bytes = limit_bytes
        self._measure = measure

    def check(self, more_bytes: int = 0) -> None:
        """Raises LimitReachedError when what is held, and so much more, is above the limit."""
        if not self._limit_bytes:
            return
        needed = self._measure() + more_bytes
        if needed > self._limit_bytes:
            raise LimitReachedError(
                f"The model needs about {needed // _MIB} MiB with what is loaded; "
                f"{self._limit_bytes // _MIB} MiB are allowed.",
                resource="memory_bytes",
                limit=self._limit_bytes,
                needed=needed,
            )


def _pss_bytes(pid: int) -> int:
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError:  # it ended
        return 0
    for line in rollup.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0
