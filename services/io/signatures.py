"""What the file system says of a file, and whether a later change must show in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.io.model import Signature

if TYPE_CHECKING:
    import os

SETTLED_AGE_NS = 2_000_000_000
"""A file is settled when it was last touched this long before it was read. Clocks of file systems
tick every 4 ms (ext4, by the kernel's tick) to 2 s (FAT, some network mounts): a write within one
tick of the read would leave the signature as it is, so the coarsest tick is taken."""


def signature_of(status: os.stat_result, read_at_ns: int | None = None) -> Signature:
    """Returns a file's signature; it can be settled only when the time of reading is known."""
    newest = max(status.st_mtime_ns, status.st_ctime_ns)
    settled = read_at_ns is not None and newest < read_at_ns - SETTLED_AGE_NS
    return Signature(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, settled)


def proves_unchanged(known: Signature, now: Signature) -> bool:
    """Tells whether a file must hold what it held when `known` was taken, without reading it."""
    return known.settled and known[:4] == now[:4]
