"""Takes ranges and texts out of the bytes of a file, whose digest is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.io.content import content_hash, normal_form
from services.io.errors import ContentChangedError, InvalidUtf8Error, RangeOutsideFileError
from services.io.model import ContentRef, NodeContent, SnippetRef
from services.runtime.errors import InvalidRequestError, LodestoneError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MAX_TAKEN_BYTES = 1 << 20
"""Bytes of results, or bytes that texts are made of, from which on results are handed on: a
thousand items may each ask for all of one file, and the answer keeps few of them."""

_FEW_ITEMS = 3

SnippetItem = tuple[int, SnippetRef]
ContentItem = tuple[int, ContentRef]
"""An item and its position in the request."""


def take_snippets(
    data: bytes, digest: bytes, items: Sequence[SnippetItem]
) -> Iterator[tuple[list[tuple[int, bytes | LodestoneError]], int]]:
    """Yields what becomes of items of a file, some at a time, and the bytes of these.

    A batch is many short ranges of plain ASCII, so those go by the shortest way: the file is looked
    at once where that is cheaper than looking at each of its items.
    """
    size, total = len(data), 0
    is_plain = len(items) > _FEW_ITEMS and data.isascii()
    taken: list[tuple[int, bytes | LodestoneError]] = []
    for position, ref in items:
        start, end = ref.start, ref.end
        content = data[start:end]
        if (
            ref.file_digest != digest
            or not start <= end <= size
            or not (is_plain or (content.isascii() and (end == size or data[end] & 0xC0 != 0x80)))
        ):
            try:
                snippet_of(data, digest, ref)
            except LodestoneError as error:
                taken.append((position, error))
                continue
        total += end - start
        taken.append((position, content))
        if total >= MAX_TAKEN_BYTES:
            yield taken, total
            taken, total = [], 0
    if taken:
        yield taken, total


def take_contents(
    data: bytes, digest: bytes, items: Sequence[ContentItem]
) -> Iterator[tuple[list[tuple[int, NodeContent | LodestoneError]], int]]:
    """Yields what becomes of items of a file, some at a time, and the bytes of these."""
    total = looked_at = 0
    taken: list[tuple[int, NodeContent | LodestoneError]] = []
    for position, ref in items:
        try:
            result = content_of(data, digest, ref)
        except LodestoneError as error:
            taken.append((position, error))
        else:
            total += text_bytes(result)
            taken.append((position, result))
        looked_at += max(0, ref.segments[-1].end - ref.segments[0].start)  # also for an error
        if looked_at >= MAX_TAKEN_BYTES:
            yield taken, total
            taken, total, looked_at = [], 0, 0
    if taken:
        yield taken, total


def snippet_of(data: bytes, digest: bytes, ref: SnippetRef) -> bytes:
    """Returns the bytes of a range, `data[ref.start : ref.end]`.

    Raises:
        ContentChangedError, RangeOutsideFileError, InvalidUtf8Error.
    """
    _check_digest(digest, ref)
    check_range(data, ref.path, ref.start, ref.end)
    content = data[ref.start : ref.end]
    try:
        content.decode()
    except UnicodeDecodeError:
        raise InvalidUtf8Error.at(ref.path, "The bytes are not valid UTF-8.") from None
    return content


def content_of(data: bytes, digest: bytes, ref: ContentRef) -> NodeContent:
    """Returns the text of a node, which is no longer than the file.

    Raises:
        ContentChangedError, RangeOutsideFileError, InvalidUtf8Error.
        InvalidRequestError: a piece begins before the end of the one before it.
    """
    _check_digest(digest, ref)
    position = 0
    for start, end in ref.segments:
        check_range(data, ref.path, start, end)
        if start < position:
            raise InvalidRequestError(
                "The pieces of a text overlap, or are out of order.",
                metadata={"refs.segments": "each must begin behind the one before it"},
            )
        position = end
    try:
        text = normal_form(data, ref.segments)
    except UnicodeDecodeError:
        raise InvalidUtf8Error.at(ref.path, "The bytes are not valid UTF-8.") from None
    found = content_hash(text)
    if found != ref.content_hash:
        raise ContentChangedError.at(ref.path, "The text of the node has another hash.")
    return NodeContent(text, found)


def text_bytes(content: NodeContent) -> int:
    """Returns how many bytes a text takes in an answer."""
    text = content.text
    return len(text) if text.isascii() else len(text.encode())


def _check_digest(digest: bytes, ref: SnippetRef | ContentRef) -> None:
    if ref.file_digest != digest:
        raise ContentChangedError.at(
            ref.path, "The file does not hold the bytes that the caller named."
        )


def check_range(data: bytes, path: str, start: int, end: int) -> None:
    """Raises unless a range lies in the file and cuts no character."""
    size = len(data)
    if not start <= end <= size:
        raise RangeOutsideFileError.at(path, "The range ends after the file.", size=str(size))
    if start < size and data[start] & 0xC0 == 0x80:
        raise InvalidUtf8Error.at(path, f"The range cuts a character at byte {start}.")
    if end < size and data[end] & 0xC0 == 0x80:
        raise InvalidUtf8Error.at(path, f"The range cuts a character at byte {end}.")
