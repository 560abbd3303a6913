"""The parts of a message are counted as protobuf reads them, whatever is sent."""

from __future__ import annotations

from contextlib import suppress

import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import given
from hypothesis import strategies as st

from services.runtime.wire import NotAMessageError, has_more_parts

NONE: frozenset[int] = frozenset()


def number(value: int, length: int = 0) -> bytes:
    """Returns a number as it is sent, in more bytes than it needs if so many are asked for."""
    digits = bytearray()
    while value > 127 or len(digits) + 1 < length:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits, value])


PARTS = st.one_of(
    st.builds(
        lambda field, value: number(field << 3) + number(value),
        st.integers(1, 1 << 28),
        st.integers(0, (1 << 64) - 1),
    ),
    st.builds(
        lambda field, data, length: number(field << 3 | 2) + number(len(data), length) + data,
        st.integers(1, 1 << 28),
        st.binary(max_size=200),
        st.integers(1, 5),
    ),
    st.builds(lambda field: number(field << 3 | 1) + bytes(8), st.integers(1, 1 << 28)),
    st.builds(lambda field: number(field << 3 | 5) + bytes(4), st.integers(1, 1 << 28)),
)


@given(st.lists(PARTS, max_size=30).map(b"".join))
def test_a_message_has_as_many_parts_as_protobuf_finds(data: bytes) -> None:
    found = len(UnknownFieldSet(Empty.FromString(data)))

    assert not has_more_parts(data, found, NONE)
    assert found == 0 or has_more_parts(data, found - 1, NONE)


@given(st.lists(PARTS, max_size=5).map(b"".join), st.binary(max_size=30))
def test_of_what_protobuf_reads_no_part_is_missed(good: bytes, end: bytes) -> None:
    """Whatever bytes: what is taken for a message of few parts is one, or protobuf refuses it."""
    data = good + end
    with suppress(DecodeError, NotAMessageError):
        found = len(UnknownFieldSet(Empty.FromString(data)))
        assert found == 0 or has_more_parts(data, found - 1, NONE)


def test_numbers_in_one_part_count_as_few_as_they_may_be() -> None:
    """A number has one byte to ten."""
    data = number(7 << 3 | 2) + number(100) + b"\x01" * 100

    assert has_more_parts(data, 10, frozenset({7}))
    assert not has_more_parts(data, 11, frozenset({7}))
    assert not has_more_parts(data, 1, frozenset({8}))


@pytest.mark.parametrize(
    "data", [b"\x0b\x0c", b"\x0a\x02a", b"\x0a", b"\x08\x80", b"\x08" + b"\x80" * 11, b"\x09a"]
)
def test_what_is_no_message_is_told(data: bytes) -> None:
    with pytest.raises(NotAMessageError):
        has_more_parts(b"\x0a\x01a" + data, 100, NONE)
