"""Overlapping windows of lines, for text without grammar and for files that do not parse."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.io.model import NodeKind, Span
from services.io.parser.draft import Draft
from services.io.parser.spans import FULL_SHARE, Piece, cut_piece

if TYPE_CHECKING:
    from services.io.parser.draft import NodeBuilder

MAX_LINES = 40
MIN_LINES = 8
OVERLAP_SHARE = 0.1


def add_windows(builder: NodeBuilder) -> None:
    """Adds windows over the whole file.

    A window that is rather full ends at a blank line, so that an edit moves the borders of few.

    Raises:
        TooManyNodesError: the file has too many.
    """
    pieces = _lines(builder)
    first = 0
    while first < len(pieces):
        end = _window_end(builder, pieces, first)
        span = Span(pieces[first].start, pieces[end - 1].end)
        tokens = sum(piece.tokens for piece in pieces[first:end])
        builder.add(Draft(NodeKind.WINDOW, "", 0, span), tokens)
        if end == len(pieces):
            return
        overlap = int((end - first) * OVERLAP_SHARE)
        # What fills a window alone is not repeated, nor what follows a blank line.
        is_break = _is_blank(builder, pieces[end - 1])
        first = end if is_break else max(end - overlap, first + 1)


def _lines(builder: NodeBuilder) -> list[Piece]:
    data, pieces, start = builder.data, list[Piece](), 0
    while start < len(data):
        newline = data.find(b"\n", start)
        end = len(data) if newline < 0 else newline + 1
        pieces.extend(cut_piece(builder.counter, start, end, builder.budget))
        start = end
    return pieces


def _window_end(builder: NodeBuilder, pieces: list[Piece], first: int) -> int:
    tokens = 0.0
    for position in range(first, min(first + MAX_LINES, len(pieces))):
        tokens += pieces[position].tokens
        if tokens > builder.budget:
            return max(position, first + 1)
        is_full = tokens > builder.budget * FULL_SHARE or position - first >= MAX_LINES * FULL_SHARE
        if is_full and position - first >= MIN_LINES and _is_blank(builder, pieces[position]):
            return position + 1
    return min(first + MAX_LINES, len(pieces))


def _is_blank(builder: NodeBuilder, piece: Piece) -> bool:
    return piece.tokens == 0 and not builder.data[piece.start : piece.end].strip()
