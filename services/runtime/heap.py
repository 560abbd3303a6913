"""Keeps the C heap of a service that runs for months from growing by holes.

glibc maps a block of 128 KiB or more by itself and gives it back when it is freed, but raises that
limit to the size of each such block that is freed (mallopt(3), M_MMAP_THRESHOLD). From then on
messages and buffers of hundreds of kilobytes lie in the heap, between small blocks that stay, and
the holes that they leave fit the next ones badly: the heap of an indexer at work grew by a MiB a
minute while what was in use stayed the same.
"""

from __future__ import annotations

import ctypes

LARGE_BLOCK_BYTES = 128 << 10
"""What glibc begins with."""

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def keep_large_blocks_apart() -> bool:
    """Has large blocks mapped by themselves for good, and free ends of the heap given back.

    Returns:
        Whether it is so: False where the C library is not glibc, whose allocators differ.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(
        mallopt(option, LARGE_BLOCK_BYTES) == 1 for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD)
    )
