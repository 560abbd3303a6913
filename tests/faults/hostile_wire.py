"""Bytes that no gRPC client sends: broken HTTP/2, broken HPACK, broken framing of messages."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _PRIORITY, _RST, _SETTINGS, _PING, _GOAWAY, _WINDOW, _CONTINUATION = (
    0, 1, 2, 3, 4, 6, 7, 8, 9,
)  # fmt: skip
_END_STREAM, _END_HEADERS, _PADDED = 0x1, 0x4, 0x8
_FRAME_BYTES = 16_384
"""Longest payload of a frame unless both sides agree on another."""

_HUGE = 1 << 20


def frame(kind: int, flags: int, stream: int, payload: bytes = b"", length: int = -1) -> bytes:
    """Returns a frame; `length` is the one that it claims, -1 the true one."""
    size = len(payload) if length < 0 else length
    return struct.pack(">I", size)[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """Returns a header in HPACK: neither indexed nor Huffman-coded."""
    return b"\x00" + _sized(name) + _sized(value)


def call_headers(method: str, *more: tuple[bytes, bytes], content_type: bytes = b"") -> bytes:
    """Returns the headers of a call of gRPC."""
    pairs = (
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", method.encode()),
        (b":authority", b"localhost"), (b"te", b"trailers"),
        (b"content-type", content_type or b"application/grpc"),
    )  # fmt: skip
    return b"".join(literal(name, value) for name, value in (*pairs, *more))


def message(body: bytes, length: int = -1, *, compressed: int = 0) -> bytes:
    """Returns a message with gRPC's prefix; `length` is the one that it claims."""
    return struct.pack(">BI", compressed, len(body) if length < 0 else length) + body


def _sized(data: bytes) -> bytes:
    size = len(data)
    if size < 127:
        return bytes([size]) + data
    size -= 127
    digits = bytearray([127])
    while size >= 128:
        digits.append(size % 128 + 128)
        size //= 128
    return bytes([*digits, size]) + data


def _start() -> bytes:
    return PREFACE + frame(_SETTINGS, 0, 0)


def _call(headers: bytes, *data: bytes, stream: int = 1, flags: int = _END_STREAM) -> bytes:
    return frame(_HEADERS, _END_HEADERS, stream, headers) + b"".join(
        frame(_DATA, flags if part is data[-1] else 0, stream, part) for part in data
    )


def _garbage(draw: random.Random, _: str) -> bytes:
    return draw.randbytes(draw.randrange(1, 4096))


def _broken_preface(draw: random.Random, _: str) -> bytes:
    cut = draw.randrange(len(PREFACE))
    return PREFACE[:cut] + draw.randbytes(1) + PREFACE[cut:]


def _oversized_frame(draw: random.Random, _: str) -> bytes:
    kind = draw.choice((_DATA, _HEADERS, _SETTINGS, _PING))
    return _start() + frame(kind, 0, 1, draw.randbytes(2 * _FRAME_BYTES), (1 << 24) - 1)


def _bad_hpack(draw: random.Random, _: str) -> bytes:
    noise = draw.choice((b"\xff" * 64, b"\x7f\xff\xff\xff\xff\x0f", draw.randbytes(200)))
    return _start() + frame(_HEADERS, _END_HEADERS | _END_STREAM, 1, noise)


def _rapid_resets(draw: random.Random, method: str) -> bytes:
    headers = call_headers(method)
    code = struct.pack(">I", draw.randrange(14))
    return _start() + b"".join(
        frame(_HEADERS, _END_HEADERS, stream, headers) + frame(_RST, 0, stream, code)
        for stream in range(1, 400, 2)
    )


def _half_open(draw: random.Random, method: str) -> bytes:
    whole = _start() + frame(_HEADERS, _END_HEADERS, 1, call_headers(method))
    return whole[: draw.randrange(1, len(whole))]


def _short_message(draw: random.Random, method: str) -> bytes:
    claimed = draw.choice((1, 5, 100, 1 << 20, (1 << 32) - 1))
    part = message(b"", claimed)[: draw.randrange(1, 6)]
    return _start() + _call(call_headers(method), part)


def _wrong_content_type(draw: random.Random, method: str) -> bytes:
    kind = draw.choice((b"text/html", b"application/json", b"application/grpc-web", b"x" * 100))
    return _start() + _call(call_headers(method, content_type=kind), message(b"{}"))


def _giant_headers(draw: random.Random, method: str) -> bytes:
    block = call_headers(method, *((b"x-%d" % n, b"v" * 4000) for n in range(_HUGE // 4000)))
    parts = [block[at : at + _FRAME_BYTES] for at in range(0, len(block), _FRAME_BYTES)]
    last = _END_HEADERS if draw.random() < 0.5 else 0
    return (
        _start()
        + frame(_HEADERS, 0, 1, parts[0])
        + b"".join(frame(_CONTINUATION, 0, 1, part) for part in parts[1:-1])
        + frame(_CONTINUATION, last, 1, parts[-1])
    )


def _any_frames(draw: random.Random, method: str) -> bytes:
    sent = _start() + frame(_HEADERS, _END_HEADERS, 1, call_headers(method))
    for _ in range(draw.randrange(1, 30)):
        payload = draw.randbytes(draw.choice((0, 1, 4, 5, 6, 8, 100)))
        stream = draw.choice((0, 1, 2, 3, (1 << 31) - 1))
        sent += frame(draw.randrange(12), draw.randrange(256), stream, payload)
    return sent


def _flood(draw: random.Random, _: str) -> bytes:
    one = draw.choice(
        (
            frame(_PING, 0, 0, bytes(8)),
            frame(_SETTINGS, 0, 0, struct.pack(">HI", 4, (1 << 31) - 1)),
            frame(_WINDOW, 0, 0, struct.pack(">I", (1 << 31) - 1)),
            frame(_PRIORITY, 0, 1, bytes(5)),
            frame(_DATA, _PADDED, 1, b"\xff"),
            frame(_GOAWAY, 0, 0, bytes(8)),
        )
    )
    return _start() + one * 2000


def _bad_messages(draw: random.Random, method: str) -> bytes:
    body = draw.randbytes(draw.randrange(200))
    parts = [
        message(body),
        message(body, compressed=1),
        message(body, compressed=draw.randrange(2, 256)),
        message(body) + message(body),
    ]
    encoding = draw.choice((b"gzip", b"identity", b"snappy"))
    return _start() + _call(call_headers(method, (b"grpc-encoding", encoding)), draw.choice(parts))


def _odd_headers(draw: random.Random, method: str) -> bytes:
    more = draw.choice(
        (
            (b"grpc-timeout", b"9" * 30 + b"n"),
            (b"grpc-timeout", b"-1S"),
            (b"authorization", b"Bearer \xff\xfe\x00"),
            (b"traceparent", b"00-" + b"z" * 300),
            (b"name-bin", b"!!!!"),
            (b":path", b"/twice"),
            (b"UPPER", b"case"),
            (b"x", b"a\r\nb: c"),
        )
    )
    path = draw.choice((method, "", "/", "no-slash", "/a/b/c", "/" + "m" * 2000))
    return _start() + _call(call_headers(path, more), message(b""))


def _flipped(draw: random.Random, method: str) -> bytes:
    sent = bytearray(_start() + _call(call_headers(method), message(b"\x0a\x03abc")))
    for _ in range(draw.randrange(1, 8)):
        # Below 128: a method's name that is not UTF-8 ends the process, see `unspeakable`.
        sent[draw.randrange(len(PREFACE), len(sent))] = draw.randrange(128)
    return bytes(sent)


def unspeakable(method: str) -> bytes:
    """Returns a call of a method that is not UTF-8: it ends the loop of a server of grpcio."""
    headers = call_headers(method).replace(method.encode(), method[:-2].encode() + b"\xff\xff")
    return _start() + _call(headers, message(b""))


ATTACKS: Sequence[Callable[[random.Random, str], bytes]] = (
    _garbage, _broken_preface, _oversized_frame, _bad_hpack, _rapid_resets, _half_open,
    _short_message, _wrong_content_type, _giant_headers, _any_frames, _flood, _bad_messages,
    _odd_headers, _flipped,
)  # fmt: skip
"""Each returns what to send, of a source of chance and a method's name."""
