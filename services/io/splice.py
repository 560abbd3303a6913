"""Replaces byte ranges of a file's content."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from services.io.errors import ContentChangedError, FileTooLargeError, InvalidUtf8Error
from services.io.slicing import check_range
from services.runtime.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from services.io.changes import FileEdits, Splice


def check_overlap(edits: FileEdits) -> None:
    """Raises InvalidRequestError when two ranges share a byte, or one inserts inside another.

    Ranges may touch. Text is inserted before a range that begins there and after one that ends
    there, and several texts at one place stand in the order of the request.
    """
    ordered = in_order(edits.splices)
    for before, after in pairwise(ordered):
        if after.start < before.end:
            first, second = sorted((before.position, after.position))
            raise InvalidRequestError(
                "Two edits of one file overlap.",
                metadata={f"edits[{second}].ref": f"overlaps with edits[{first}].ref"},
            )


def spliced(data: bytes, digest: bytes, edits: FileEdits, max_bytes: int) -> bytes:
    """Returns the content of a file after its edits; `digest` is that of `data`.

    Raises:
        InvalidRequestError: ranges overlap.
        ContentChangedError: an edit was made for other content.
        RangeOutsideFileError, InvalidUtf8Error: a range is none of this file, or cuts a character.
        InvalidUtf8Error: the file is UTF-8, and would not be.
        FileTooLargeError: the file would be larger than the limit.
    """
    check_overlap(edits)
    if any(splice.file_digest != digest for splice in edits.splices):
        raise ContentChangedError.at(
            edits.path, "The file does not hold the bytes that the caller named."
        )
    for splice in edits.splices:
        check_range(data, edits.path, splice.start, splice.end)
    if any(not _is_utf8(splice.replacement) for splice in edits.splices) and _is_utf8(data):
        raise InvalidUtf8Error.at(edits.path, "The file is UTF-8 and would not be after the edits.")
    check_size(edits.path, _size_after(data, edits.splices), max_bytes)
    return _joined(data, edits.splices)


def check_size(path: str, size_bytes: int, max_bytes: int) -> None:
    """Raises FileTooLargeError when a file has, or would have, more bytes than the limit."""
    if size_bytes > max_bytes:
        raise FileTooLargeError.at(
            path,
            "The file is or would be larger than the limit.",
            size=str(size_bytes),
            limit=str(max_bytes),
        )


def in_order(splices: Iterable[Splice]) -> list[Splice]:
    """Returns splices by place; those at one place keep the order of the request."""
    return sorted(splices, key=lambda splice: (splice.start, splice.end))


def _size_after(data: bytes, splices: Iterable[Splice]) -> int:
    return len(data) + sum(len(s.replacement) - (s.end - s.start) for s in splices)


def _joined(data: bytes, splices: Iterable[Splice]) -> bytes:
    pieces: list[bytes] = []
    position = 0
    for splice in in_order(splices):
        pieces += (data[position : splice.start], splice.replacement)
        position = splice.end
    pieces.append(data[position:])
    return b"".join(pieces)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
