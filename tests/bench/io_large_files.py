"""Three ways to read one range of a large file that is proven by digest, against the first.

`python -m tests.bench.io_large_files` prints JSON as its last line. All digest every byte, as a
range may be told only when the whole file is what the caller named. `whole` reads the file into
memory, then digests and cuts; `mapped` maps it; `streamed` digests chunk after chunk and keeps of
each what lies in the range. Mapping is measured for the record alone: a file that is cut short
while it is mapped kills the process with SIGBUS.
"""

from __future__ import annotations

import json
import mmap
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from services.io.reading import read_to_end
from tests.bench.figures import figure, say

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES = {"64k": 1 << 16, "2m": 2 << 20, "64m": 64 << 20}
_ROUND_BYTES = 256 << 20
_ROUNDS = 7
_CHUNK_BYTES = 1 << 20
_RANGE_BYTES = 2000


def measure(scratch: Path) -> dict[str, dict[str, Any]]:
    """Returns the rates of the other ways as shares of reading the whole file."""
    results = {}
    for name, size in SIZES.items():
        path = scratch / name
        path.write_bytes(os.urandom(size))
        fd = os.open(path, os.O_RDONLY)
        try:
            seconds = timed(fd, size)
        finally:
            os.close(fd)
        whole = seconds.pop("whole")
        for way, times in seconds.items():
            ratio = statistics.median(a / b for a, b in zip(whole, times, strict=True))
            say(f"{name} {way}: {ratio:.2f} of reading the whole file")
            results[f"large_{name}_{way}_to_whole"] = figure(ratio)
    return results


def timed(fd: int, size: int) -> dict[str, list[float]]:
    """Returns seconds of each way, round by round; the ways take turns."""
    ways: dict[str, Callable[[int, int, int], tuple[bytes, bytes]]] = {
        "whole": whole,
        "mapped": mapped,
        "streamed": streamed,
    }
    start = size // 3
    assert len({read(fd, size, start) for read in ways.values()}) == 1
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    times = max(1, _ROUND_BYTES // size // _ROUNDS)
    for _ in range(_ROUNDS):
        for name, read in ways.items():
            started = time.perf_counter()
            for _ in range(times):
                read(fd, size, start)
            seconds[name].append(time.perf_counter() - started)
    return seconds


def whole(fd: int, size: int, start: int) -> tuple[bytes, bytes]:
    """Reads all, as the service does."""
    data = read_to_end(fd, size, size)
    return blake3(data).digest(), data[start : start + _RANGE_BYTES]


def mapped(fd: int, size: int, start: int) -> tuple[bytes, bytes]:
    """Maps all."""
    with mmap.mmap(fd, size, prot=mmap.PROT_READ) as data:
        return blake3(data).digest(), data[start : start + _RANGE_BYTES]


def streamed(fd: int, size: int, start: int) -> tuple[bytes, bytes]:
    """Reads a chunk at a time, and keeps what lies in the range."""
    hasher, kept, offset, end = blake3(), [], 0, start + _RANGE_BYTES
    while offset < size:
        chunk = os.pread(fd, min(_CHUNK_BYTES, size - offset), offset)
        hasher.update(chunk)
        if offset < end and start < offset + len(chunk):
            kept.append(chunk[max(start - offset, 0) : end - offset])
        offset += len(chunk)
    return hasher.digest(), b"".join(kept)


def main() -> None:
    """Measures, and prints one line of JSON."""
    with tempfile.TemporaryDirectory() as scratch:
        sys.stdout.write(json.dumps(measure(Path(scratch))) + "\n")


if __name__ == "__main__":
    main()
