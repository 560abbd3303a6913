"""The recipe: which text a model reads for a node, and the hash of that text.

What becomes of a range of bytes is decided here: whoever changes it raises `RECIPE`, and all texts
are made again. Which ranges are a node's is decided by the parser, which has a number of its own.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from blake3 import blake3

if TYPE_CHECKING:
    from collections.abc import Iterable

RECIPE = "3"
PARSER = f"{RECIPE}.2"
"""What files are parsed by: whoever changes which nodes, names or references a file has raises the
second number. Files are parsed again then, and what has the same text keeps its vector."""
DIGEST_BYTES = 32
_HASH_PREFIX = b"lodestone-content-" + RECIPE.encode() + b"\0"
_INDENTATION = " \t"
_BLANKS = re.compile(rb"[ \t]*")


def file_digest(data: bytes) -> bytes:
    """Returns the BLAKE3-256 of a file's bytes."""
    digest: bytes = blake3(data).digest()
    return digest


def content_hash(text: str) -> bytes:
    """Returns the BLAKE3-256 that names a text in its normal form; it knows no path."""
    digest: bytes = blake3(_HASH_PREFIX + text.encode()).digest()
    return digest


def normal_form(data: bytes, segments: Iterable[tuple[int, int]]) -> str:
    """Returns the text of some byte ranges of a file, without what does not matter.

    Each segment loses trailing space and the indentation that its lines share (its first line has
    the indentation of the line in which it begins), then they are joined by newlines, and blank
    lines at both ends go.

    Raises:
        UnicodeDecodeError: a segment is not UTF-8 or cuts a character.
    """
    pieces: list[str] = []
    line = _Indentation(data)
    for start, end in segments:
        text = data[start:end].decode()
        if "\n" in text:
            pieces.append(_normal_lines(line.before(start) + text))
        else:
            pieces.append(text.rstrip().lstrip(_INDENTATION))
    return ("\n".join(pieces) if len(pieces) > 1 else pieces[0]).strip("\n")


class _Indentation:
    """Tells the blanks at the start of lines; asked in order, it looks at no byte twice.

    A line may be as long as the file.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._asked = 0
        self._line_start = 0

    def before(self, position: int) -> str:
        """Returns the indentation of the line that holds `position`, as far as it is before it."""
        least = self._asked if position >= self._asked else 0
        newline = self._data.rfind(b"\n", least, position)
        if newline >= 0 or least == 0:
            self._line_start = newline + 1
        self._asked = position
        blanks = _BLANKS.match(self._data, self._line_start, position)
        return blanks[0].decode() if blanks else ""


def _normal_lines(text: str) -> str:
    lines = list(map(str.rstrip, text.split("\n")))
    # At once: each removal from the start would move all that follow.
    del lines[: next((i for i, line in enumerate(lines) if line), len(lines))]
    while lines and not lines[-1]:
        del lines[-1]
    margin = _shared_indentation(lines)
    joined = "\n".join(lines)
    return joined[len(margin) :].replace("\n" + margin, "\n") if margin else joined


def _shared_indentation(lines: list[str]) -> str:
    """Returns the blanks that all lines begin with, save for empty ones."""
    if not lines or lines[0][0] not in _INDENTATION:
        return ""
    # What the least and the greatest line share, all between them share.
    least, greatest = min(filter(None, lines)), max(lines)
    for position, character in enumerate(least):
        if character not in _INDENTATION or greatest[position] != character:
            return least[:position]
    return least
