"""Makes finished nodes: their text in normal form, its hash, its tokens, split when too long."""

from __future__ import annotations

import math
import re
from array import array
from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple

from services.io.content import content_hash, normal_form
from services.io.model import Node, NodeKind, Span
from services.io.parser.spans import pack, pieces_between
from services.io.parser.tokens import SPECIAL_TOKENS, TokenCounter

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MIN_BUDGET_TOKENS = 16
MAX_SIGNATURE_SHARE = 1 / 3


class TooManyNodesError(Exception):
    """A file has more nodes than the limit."""


class Draft(NamedTuple):
    """A node before its text is made.

    `segments` is empty when the text is the range. `signature` opens each further part of a split
    node, and `cuts` are where it may be split.
    """

    kind: NodeKind
    name: str
    parent: int
    span: Span
    segments: tuple[Span, ...] = ()
    signature: Span | None = None


class NodeBuilder:
    """Collects the nodes of one file in order."""

    def __init__(self, data: bytes, max_tokens: int, max_nodes: int) -> None:
        self.data = data
        self.counter = TokenCounter(data)
        self.budget = max(max_tokens - SPECIAL_TOKENS, MIN_BUDGET_TOKENS)
        self.nodes: list[Node] = []
        self._max_nodes = max_nodes
        self._newlines = _newlines(data)

    @property
    def line_count(self) -> int:
        """Lines in the file; a last line without newline counts."""
        return len(self._newlines) + (not self.data.endswith(b"\n") and bool(self.data))

    def tokens(self, span: Span) -> float:
        """Returns the estimate of a range's tokens."""
        return self.counter.of(*span)

    def add(self, draft: Draft, tokens: float, part: int = 0, part_count: int = 1) -> int:
        """Adds a node as it is; returns its position plus 1, 0 when it has no text.

        `tokens` are those of its ranges: the normal form changes space alone, which has none.

        Raises:
            TooManyNodesError: the file has too many.
        """
        start, end = draft.span
        segments = () if draft.segments == (draft.span,) else draft.segments
        text = normal_form(self.data, segments or (draft.span,))
        if not text:
            return 0
        if len(self.nodes) >= self._max_nodes:
            raise TooManyNodesError
        self.nodes.append(
            Node(
                kind=draft.kind,
                name=draft.name,
                parent=draft.parent,
                start=start,
                end=end,
                start_line=self.line_of(start),
                end_line=self.line_of(max(start, end - 1)),
                segments=segments,
                content_hash=content_hash(text),
                part=part,
                part_count=part_count,
                tokens=math.ceil(tokens),
            )
        )
        return len(self.nodes)

    def add_split(self, draft: Draft, cuts: Iterable[int]) -> None:
        """Adds a node of one range in parts that tile it, cut at `cuts` where they serve."""
        signature = self._short_signature(draft.signature)
        signature_tokens = self.tokens(signature) if signature else 0
        budget = self.budget - signature_tokens
        start, end = draft.span
        pieces = pieces_between(self.counter, cuts, start, end, budget)
        packed = pack(self.data, pieces, self.budget, budget)
        for index, part in enumerate(packed):
            span = Span(part[0].start, part[-1].end)
            # Below a long doc comment the signature lies in a later part than the first.
            has_passed = signature is not None and signature.end <= span.start
            opening = (signature,) if signature and has_passed else ()
            split = Draft(
                draft.kind, draft.name, draft.parent, span, (*opening, span) if opening else ()
            )
            tokens = sum(piece.tokens for piece in part) + signature_tokens * len(opening)
            self.add(split, tokens, index, len(packed))

    def add_run(self, draft: Draft, cuts: Sequence[Iterable[int]]) -> None:
        """Adds a node of several segments, in as many parts as it takes; `cuts` is per segment."""
        pieces = [
            piece
            for span, inner in zip(draft.segments, cuts, strict=True)
            for piece in pieces_between(self.counter, inner, span.start, span.end, self.budget)
        ]
        packed = pack(self.data, pieces, self.budget, self.budget)
        for index, part in enumerate(packed):
            segments = merge_lines(self.data, [Span(piece.start, piece.end) for piece in part])
            split = Draft(
                draft.kind,
                draft.name,
                draft.parent,
                Span(part[0].start, part[-1].end),
                segments,
            )
            self.add(split, sum(piece.tokens for piece in part), index, len(packed))

    def _short_signature(self, signature: Span | None) -> Span | None:
        """Returns the signature, its first line, or nothing, as the budget allows."""
        if signature is None or signature.start == signature.end:
            return None
        limit = int(self.budget * MAX_SIGNATURE_SHARE)
        if signature.end - signature.start <= limit or self.tokens(signature) <= limit:
            return signature
        newline = self.data.find(b"\n", signature.start, signature.end)
        line = Span(signature.start, newline)
        return line if newline > signature.start and self.tokens(line) <= limit else None

    def line_of(self, position: int) -> int:
        """Returns the 1-based line of a byte."""
        return bisect_left(self._newlines, position) + 1


def merge_lines(data: bytes, spans: Sequence[Span]) -> tuple[Span, ...]:
    """Joins ranges that follow each other with nothing, or one line's end, between them.

    The text stays the same: segments are joined by one newline. Indentation must be the same too.
    """
    merged: list[Span] = []
    for span in spans:
        if merged:
            gap = data[merged[-1].end : span.start]
            if not gap or (
                gap.strip(b" \t\r") == b"\n" and _column(data, span) == _column(data, merged[-1])
            ):
                merged[-1] = Span(merged[-1].start, span.end)
                continue
        merged.append(span)
    return tuple(merged)


def _column(data: bytes, span: Span) -> int:
    return span.start - data.rfind(b"\n", max(0, span.start - 4096), span.start)


def _newlines(data: bytes) -> array[int]:
    return array("Q", map(re.Match.start, re.finditer(b"\n", data)))
