"""What the service and the process that runs the model say to each other over a socket.

A frame is a header (kind, number of the call, length of the payload) and a payload. The process
says once READY with what it loaded, or REFUSED with why not; then it answers each BATCH by ROWS or
by FAILED, in any order. Both ends are ours and of one version, on one machine.
"""

from __future__ import annotations

import pickle
import socket
import struct
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.embed.model import TokenIds, Vectors

_HEADER = struct.Struct("<BII")
_COUNT = struct.Struct("<I")
_SHAPE = struct.Struct("<II")
_MOST_BYTES = 1 << 30
_TIMEVAL = struct.Struct("@ll")


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


def limit_sending(channel: socket.socket, seconds: float) -> None:
    """Has `send` raise OSError when the other end has taken nothing for so long; 0 is no limit."""
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(seconds))


def limit_receiving(channel: socket.socket, seconds: float) -> None:
    """Has `receive` raise BlockingIOError when nothing has come for so long; 0 is no limit."""
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(seconds))


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


def pack_batch(batch: Sequence[TokenIds], route: str) -> bytes:
    """Returns token ids: how many texts, their lengths, all ids as int64, then the route."""
    lengths = np.fromiter(map(len, batch), dtype="<u4", count=len(batch))
    ids = np.concatenate(batch).tobytes()
    return _COUNT.pack(len(batch)) + lengths.tobytes() + ids + route.encode()


def unpack_batch(payload: bytes | bytearray) -> tuple[list[TokenIds], str]:
    """Returns the token ids of each text, as views of the payload, and their route."""
    (count,) = _COUNT.unpack_from(payload)
    lengths = np.frombuffer(payload, dtype="<u4", count=count, offset=_COUNT.size)
    tokens = int(lengths.sum())
    ids = np.frombuffer(payload, dtype=np.int64, count=tokens, offset=_COUNT.size + lengths.nbytes)
    route = payload[_COUNT.size + lengths.nbytes + ids.nbytes :].decode()
    return np.split(ids, np.cumsum(lengths)[:-1]), route


def pack_rows(rows: Vectors) -> bytes:
    """Returns a matrix: its shape, then its numbers as float32."""
    return _SHAPE.pack(*rows.shape) + np.ascontiguousarray(rows, dtype=np.float32).tobytes()


def unpack_rows(payload: bytes | bytearray) -> Vectors:
    """Returns a matrix, as a view of the payload."""
    shape = _SHAPE.unpack_from(payload)
    return np.frombuffer(payload, dtype=np.float32, offset=_SHAPE.size).reshape(shape)


def _timeval(seconds: float) -> bytes:
    whole = int(seconds)
    return _TIMEVAL.pack(whole, int((seconds - whole) * 1e6))


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
