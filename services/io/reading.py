"""Reads or digests the whole of an open file, no further than a limit."""

from __future__ import annotations

import os

from blake3 import blake3

from services.io.beneath import WouldWaitError

_CHUNK_BYTES = 1 << 20


def read_to_end(fd: int, expected_bytes: int, max_bytes: int) -> bytes:
    """Returns the bytes of a file from its start, at most one more than `max_bytes`.

    The size is a hint alone: a file may grow while it is read, and some report none.
    """
    # One call for the whole file as a rule: pieces would be copied once more, into memory that is
    # fresh each time, which takes ten times as long for 2 MiB.
    want = min(expected_bytes, max_bytes) + 1
    chunk = os.pread(fd, want, 0)
    if len(chunk) == expected_bytes > 0:
        return chunk
    chunks, total = [chunk], len(chunk)
    want = min(max(expected_bytes + 1 - total, _CHUNK_BYTES), max_bytes + 1 - total)
    while total <= max_bytes:
        chunk = os.pread(fd, want, total)
        if not chunk:
            break
        chunks.append(chunk)
        total += len(chunk)
        if len(chunk) < want and total >= expected_bytes > 0:
            break  # less than was asked for, and all that there was to be: the end
        want = min(max(expected_bytes + 1 - total, _CHUNK_BYTES), max_bytes + 1 - total)
    return b"".join(chunks)


def read_at_once(fd: int, expected_bytes: int) -> bytes:
    """Returns the bytes of a file if all are in memory, and does not wait for a disk.

    Raises:
        WouldWaitError: they are not, the file has another size, or its file system cannot tell.
    """
    # One more than there is to be: a file that grew is not cut off.
    room = bytearray(expected_bytes + 1)
    try:
        got = os.preadv(fd, [room], 0, os.RWF_NOWAIT)
    except OSError:
        raise WouldWaitError from None
    if got != expected_bytes:
        raise WouldWaitError
    del room[-1]
    return bytes(room)


def digest_to_end(fd: int, max_bytes: int) -> tuple[bytes, int]:
    """Returns the BLAKE3-256 of a file and its length, holding no more than a chunk of it.

    A length over `max_bytes` says that the file is longer than that, and the digest nothing.
    """
    hasher = blake3()
    total = 0
    while total <= max_bytes:
        chunk = os.pread(fd, min(_CHUNK_BYTES, max_bytes + 1 - total), total)
        if not chunk:
            break
        hasher.update(chunk)
        total += len(chunk)
    digest: bytes = hasher.digest()
    return digest, total
