"""What the service and the process that runs the model say to each other over a socket.

A frame is a header (kind, number of the call, length of the payload) and a payload. The process
says once READY with what it loaded, or REFUSED with why not; then it answers each BATCH by ROWS or
by FAILED, in any order. Both ends are ours and of one version, on one machine.
"""

from __future__ import annotations

import pickle
import struct
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from services.embed.model import TokenIds, Vectors

_HEADER = struct.Struct("<BII")
_COUNT = struct.Struct("<I")
_SHAPE = struct.Struct("<II")
_MOST_BYTES = 1 << 30


class Kind(IntEnum):
    """What a frame is."""

    LOAD = 1
    READY = 2
    REFUSED = 3
    BATCH = 4
    ROWS = 5
    FAILED = 6


class Frame(NamedTuple):
    """One message."""

    kind: Kind
    number: int
    payload: bytes | bytearray


def send(channel: socket.socket, kind: Kind, number: int, payload: bytes) -> None:
    """Sends a frame; the caller sees to it that no other thread sends meanwhile."""
    channel.sendall(_HEADER.pack(kind, number, len(payload)) + payload)


def receive(channel: socket.socket) -> Frame | None:
    """Returns the next frame, or None when the other side is gone."""
    header = _read(channel, _HEADER.size)
    if header is None:
        return None
    kind, number, size = _HEADER.unpack(header)
    assert size <= _MOST_BYTES
    payload = _read(channel, size)
    return None if payload is None else Frame(Kind(kind), number, payload)


def pack_value(value: Any) -> bytes:
    """Returns a value of ours as bytes, for the other end of the socket alone."""
    return pickle.dumps(value)


def unpack_value(payload: bytes | bytearray) -> Any:
    """Returns what `pack_value` packed; the other end is a process that this one started."""
    return pickle.loads(payload)  # noqa: S301 - never from anyone but our own child or parent


def pack_batch(batch: Sequence[TokenIds]) -> bytes:
    """Returns token ids: how many texts, their lengths, then all ids as int64."""
    lengths = np.fromiter(map(len, batch), dtype="<u4", count=len(batch))
    return _COUNT.pack(len(batch)) + lengths.tobytes() + np.concatenate(batch).tobytes()


def unpack_batch(payload: bytes | bytearray) -> list[TokenIds]:
    """Returns the token ids of each text, as views of the payload."""
    (count,) = _COUNT.unpack_from(payload)
    lengths = np.frombuffer(payload, dtype="<u4", count=count, offset=_COUNT.size)
    ids = np.frombuffer(payload, dtype=np.int64, offset=_COUNT.size + lengths.nbytes)
    return np.split(ids, np.cumsum(lengths)[:-1])


def pack_rows(rows: Vectors) -> bytes:
    """Returns a matrix: its shape, then its numbers as float32."""
    return _SHAPE.pack(*rows.shape) + np.ascontiguousarray(rows, dtype=np.float32).tobytes()


def unpack_rows(payload: bytes | bytearray) -> Vectors:
    """Returns a matrix, as a view of the payload."""
    shape = _SHAPE.unpack_from(payload)
    return np.frombuffer(payload, dtype=np.float32, offset=_SHAPE.size).reshape(shape)


def _read(channel: socket.socket, size: int) -> bytearray | None:
    buffer = bytearray(size)
    view = memoryview(buffer)
    at = 0
    while at < size:
        try:
            got = channel.recv_into(view[at:])
        except ConnectionError:
            return None
        if got == 0:
            return None
        at += got
    return buffer
