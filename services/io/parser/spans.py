"""Cuts ranges of bytes where lines and pieces end, and packs them under a budget of tokens."""

from __future__ import annotations

import itertools
import zlib
from typing import TYPE_CHECKING, NamedTuple

from services.io.parser.tokens import PIECE, TOKENS_PER_PIECE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from services.io.parser.tokens import TokenCounter

FULL_SHARE = 0.6
"""From this share of the budget on a part may end early, where its text says so."""
END_EVERY = 3
_LOOK_BACK_BYTES = 256


class Piece(NamedTuple):
    """A range that stays whole when it can, and its tokens."""

    start: int
    end: int
    tokens: float


def pieces_between(
    counter: TokenCounter, cuts: Iterable[int], start: int, end: int, budget: float
) -> list[Piece]:
    """Returns pieces that tile `start` to `end`, cut at `cuts` and where one is over `budget`.

    Cuts are where lines start, so that parts are whole lines.
    """
    edges = sorted({start, end, *(cut for cut in cuts if start < cut < end)})
    pieces: list[Piece] = []
    for low, high in itertools.pairwise(edges):
        pieces.extend(cut_piece(counter, low, high, budget))
    return pieces


def cut_piece(counter: TokenCounter, start: int, end: int, budget: float) -> list[Piece]:
    """Returns a range whole if it fits, else its lines, and of a line that does not fit pieces."""
    tokens = counter.of(start, end)
    if tokens <= budget:
        return [Piece(start, end, tokens)]
    pieces: list[Piece] = []
    position = start
    for line in counter.data[start:end].split(b"\n"):
        line_end = min(position + len(line) + 1, end)
        pieces.extend(_cut_line(counter, position, line_end, budget))
        position = line_end
    return pieces


def _cut_line(counter: TokenCounter, start: int, end: int, budget: float) -> Iterator[Piece]:
    if start == end:
        return
    step = max(int(budget / TOKENS_PER_PIECE), 1)
    tokens = counter.of(start, end)
    if tokens <= step * TOKENS_PER_PIECE:
        yield Piece(start, end, tokens)
        return
    line = counter.data[start:end].decode()
    marks = [match.start() for match in PIECE.finditer(line)]
    position, character = start, 0
    for index in range(step, len(marks), step):
        size = len(line[character : marks[index]].encode())
        yield Piece(position, position + size, step * TOKENS_PER_PIECE)
        position, character = position + size, marks[index]
    rest = len(marks) - (len(marks) - 1) // step * step
    yield Piece(position, end, rest * TOKENS_PER_PIECE)


def pack(
    data: bytes, pieces: Sequence[Piece], first_budget: float, budget: float
) -> list[list[Piece]]:
    """Returns the pieces in order as parts of at most `budget` tokens (`first_budget` the first).

    A part that is rather full ends early after a piece whose bytes hash to a multiple of
    `END_EVERY`: then an edit early in a long function moves the borders up to the next such piece,
    and the parts after it keep their text.
    """
    parts: list[list[Piece]] = []
    part: list[Piece] = []
    tokens, room = 0.0, first_budget
    for piece in pieces:
        if part and tokens + piece.tokens > room:
            parts.append(part)
            part, tokens, room = [], 0.0, budget
        part.append(piece)
        tokens += piece.tokens
        if tokens > room * FULL_SHARE and _ends_early(data, piece):
            parts.append(part)
            part, tokens, room = [], 0.0, budget
    if part:
        parts.append(part)
    return _join_small_end(parts, budget)


def _join_small_end(parts: list[list[Piece]], budget: float) -> list[list[Piece]]:
    """Joins the last part to the one before when both fit."""
    if len(parts) > 1 and sum(p.tokens for part in parts[-2:] for p in part) <= budget:
        parts[-2:] = [parts[-2] + parts[-1]]
    return parts


def _ends_early(data: bytes, piece: Piece) -> bool:
    """Tells whether a part may end here, by what is no space: line ends and indentation change."""
    words = data[piece.start : piece.end].split()
    return zlib.crc32(b" ".join(words)) % END_EVERY == 0


def line_start(data: bytes, position: int) -> int:
    """Returns where the line of `position` starts, -1 when more than blanks stand in between.

    It looks back a little way: behind more blanks than that no line is taken to start.
    """
    least = max(0, position - _LOOK_BACK_BYTES)
    newline = data.rfind(b"\n", least, position)
    if newline < 0 < least or data[newline + 1 : position].strip(b" \t"):
        return -1
    return newline + 1
