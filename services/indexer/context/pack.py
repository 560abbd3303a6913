"""Fills a budget of tokens with pieces of files: merged, each content once, cited.

Pieces are offered best first. Files stand in the order of their best piece, the pieces of a file in
the order of their places.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING

from services.indexer.context.tokens import estimate_tokens
from services.indexer.model import NodeKind
from services.indexer.search.signatures import signature_of
from services.runtime.lines import one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.indexer.search.model import Hit

LARGE_SHARE = 0.5
"""A piece that takes more of the budget comes last, so that one class does not push out all that
is below it. The best piece of all is taken as it is."""

MOST_MISSES = 8
"""After so many pieces in a row without room, those below are small by chance, not by worth."""

LEAST_TOKENS = 16
"""With fewer left no piece fits any more: its place and fence take that."""

_LEAST_FENCE = 3
_LAST_TOKENS = 2
"""Of the two ends of lines that the last piece does not have."""

_FENCES = re.compile(r"`{3,}")
_DECLARATIONS = frozenset({NodeKind.FUNCTION, NodeKind.METHOD, NodeKind.CLASS})


@dataclass(frozen=True, slots=True)
class Piece:
    """A range of a file, its text, and the hits that lie in it, best first."""

    path: str
    language: str
    start_byte: int
    start_line: int
    text: str
    hits: tuple[Hit, ...]
    signature_only: bool = False
    label: str = ""
    """Name of the workspace, where its place is to tell it."""

    @property
    def file(self) -> tuple[str, str]:
        """The workspace and the path of the file that it is of."""
        return self.hits[0].workspace_name, self.path

    @property
    def end_byte(self) -> int:
        """The byte behind the text."""
        return self.start_byte + len(self.text.encode())

    @property
    def end_line(self) -> int:
        """The last line of the text, 1-based, inclusive."""
        return self.start_line + self.text.removesuffix("\n").count("\n")


class Fate(StrEnum):
    """What became of a piece that was offered."""

    TAKEN = "taken"
    SIGNATURE = "signature"
    MERGED = "merged"
    DUPLICATE = "duplicate"
    OVER_BUDGET = "over_budget"
    DEFERRED = "deferred"


@dataclass(frozen=True, slots=True)
class Pack:
    """The context."""

    text: str
    pieces: tuple[Piece, ...]
    """In the order of the text."""
    tokens: int
    duplicates: int
    over_budget: int


@dataclass(frozen=True)
class _Placed:
    """A piece that is given, with what is asked of it again and again."""

    piece: Piece
    end_byte: int
    text_tokens: int
    fence: int
    """Backticks of its fence."""

    @classmethod
    def of(cls, piece: Piece) -> _Placed:
        """Returns a piece, all of whose text is looked at."""
        return cls(piece, piece.end_byte, estimate_tokens(piece.text), _fence_of(piece.text))

    @cached_property
    def content(self) -> str:
        """Its text without what does not tell copies apart."""
        return _content(self.piece.text)

    @cached_property
    def tokens(self) -> int:
        """What it takes of the budget: no token crosses the end of a line."""
        opening, closing = _frame(self.piece, self.fence)
        return estimate_tokens(opening) + self.text_tokens + estimate_tokens(closing)


class Packer:
    """Takes pieces while they fit."""

    def __init__(self, budget: int, *, allow_signatures: bool) -> None:
        self._budget = budget
        self._allow_signatures = allow_signatures
        self._files: dict[tuple[str, str], list[_Placed]] = {}
        self._tokens = 0
        self._offered = 0
        self._misses = 0
        self._contents: set[str] = set()
        self._lines: set[str] = set()
        """Lines of all that is given."""
        self._deferred: list[Piece] = []
        self._duplicates = 0
        self._over_budget = 0

    @property
    def is_full(self) -> bool:
        """Tells whether there is no sense in offering more."""
        return self._misses >= MOST_MISSES or self._budget - self._tokens < LEAST_TOKENS

    def offer(self, piece: Piece) -> Fate:
        """Takes a piece, as a whole or as its signature, when there is room; tells what it did."""
        self._offered += 1
        fate = self._offer(piece, may_defer=True)
        if fate in {Fate.OVER_BUDGET, Fate.DEFERRED}:
            self._misses += 1
        elif fate is not Fate.DUPLICATE:
            self._misses = 0
        return fate

    def leave_out(self, count: int) -> None:
        """Counts pieces that are not offered."""
        self._over_budget += count

    def finish(self) -> Pack:
        """Takes what was deferred, as far as there is room, and returns the context."""
        deferred, self._deferred = self._deferred, []
        for piece in deferred:
            self._offer(piece, may_defer=False)
        files = [[each.piece for each in placed] for placed in self._files.values()]
        pieces = tuple(
            piece
            for placed in sorted(files, key=_best_first)
            for piece in sorted(placed, key=lambda each: each.start_byte)
        )
        text = "".join(map(render, pieces)).rstrip("\n")
        tokens = self._tokens - _LAST_TOKENS if pieces else 0
        assert tokens <= self._budget
        return Pack(text, pieces, tokens, self._duplicates, self._over_budget)

    def _offer(self, piece: Piece, *, may_defer: bool) -> Fate:
        content = _content(piece.text)
        touched = self._touched(piece)
        is_copy = not touched and content in self._contents
        if is_copy or self._is_given_beside(content, touched):
            self._duplicates += 1
            return Fate.DUPLICATE
        own = _Placed.of(piece)
        merged = _merged(touched, own)
        if (
            may_defer
            and self._offered > 1
            and not touched
            and own.tokens > self._budget * LARGE_SHARE
        ):
            self._deferred.append(piece)
            return Fate.DEFERRED
        if self._replace(touched, merged):
            self._contents.add(content)
            self._lines.update(content.split("\n"))
            return Fate.MERGED if touched else Fate.TAKEN
        head = self._head(piece)
        if head is not None and self._replace([], _Placed.of(head)):
            self._contents.add(content)
            self._lines.update(_content(head.text).split("\n"))
            return Fate.SIGNATURE
        self._over_budget += 1
        return Fate.OVER_BUDGET

    def _touched(self, piece: Piece) -> list[_Placed]:
        """Returns the pieces that share bytes with one."""
        end = piece.end_byte
        return [
            other
            for other in self._files.get(piece.file, ())
            if other.piece.start_byte < end and piece.start_byte < other.end_byte
        ]

    def _replace(self, old: list[_Placed], new: _Placed) -> bool:
        """Puts a piece in the place of others, unless the budget does not allow it."""
        tokens = self._tokens + new.tokens - sum(each.tokens for each in old)
        if tokens > self._budget:
            return False
        placed = [each for each in self._files.get(new.piece.file, ()) if each not in old]
        self._files[new.piece.file] = [*placed, new]
        self._tokens = tokens
        return True

    def _is_given_beside(self, content: str, touched: Sequence[_Placed]) -> bool:
        """Tells whether a text is a part of what is given elsewhere, such as a copied class."""
        if not self._lines.issuperset(content.split("\n")):
            return False  # that is quick, and enough for most
        return any(
            f"\n{content}\n" in f"\n{each.content}\n"
            for placed in self._files.values()
            for each in placed
            if each not in touched
        )

    def _head(self, piece: Piece) -> Piece | None:
        if not self._allow_signatures or piece.hits[0].kind not in _DECLARATIONS:
            return None
        head = signature_of(piece.text, piece.language)
        if head is None:
            return None
        short = replace(piece, text=head, signature_only=True)
        return None if self._touched(short) else short


def render(piece: Piece) -> str:
    """Returns a piece as text: where it is, then its code in a fence."""
    opening, closing = _frame(piece, _fence_of(piece.text))
    return f"{opening}{piece.text}{closing}"


def _frame(piece: Piece, fence_size: int) -> tuple[str, str]:
    """Returns what is before and behind a piece's text, in a fence of so many backticks."""
    fence = "`" * fence_size
    names = ", ".join(dict.fromkeys(hit.qualified_name for hit in piece.hits if hit.qualified_name))
    note = " (signature only)" if piece.signature_only else ""
    label = f"[{piece.label}] " if piece.label else ""
    where = f"{label}{piece.path}:{piece.start_line}-{piece.end_line}"
    head = one_line(f"{where} {names}".rstrip() + note)
    language = "" if piece.language == "text" else piece.language
    newline = "" if piece.text.endswith("\n") else "\n"
    return f"{head}\n{fence}{language}\n", f"{newline}{fence}\n\n"


def _fence_of(text: str) -> int:
    """Returns how many backticks fence a text: more than it has in a row."""
    return max([_LEAST_FENCE, *(len(run) + 1 for run in _FENCES.findall(text))])


def _merged(touched: Sequence[_Placed], own: _Placed) -> _Placed:
    """Returns the union of a piece and of those that share bytes with it.

    Where all begin and end with lines only the text of the new one is looked at: a long file grows
    by one piece after the other.
    """
    if not touched:
        return own
    union = _join([*(each.piece for each in touched), own.piece])
    data, base = union.text.encode(), union.start_byte
    parts = [*touched, own]
    edges = {edge - base for each in parts for edge in (each.piece.start_byte, each.end_byte)}
    if any(0 < at < len(data) and b"\n" not in data[at - 1 : at + 1] for at in edges):
        return _Placed.of(union)
    text_tokens = own.text_tokens
    for each in touched:
        first = max(each.piece.start_byte, own.piece.start_byte) - base
        last = min(each.end_byte, own.end_byte) - base
        text_tokens += each.text_tokens - estimate_tokens(data[first:last].decode())
    fence = max(each.fence for each in parts)
    return _Placed(union, base + len(data), text_tokens, fence)


def _join(pieces: list[Piece]) -> Piece:
    """Returns the union of overlapping pieces; the order of their hits is kept."""
    hits = tuple(dict.fromkeys(hit for piece in pieces for hit in piece.hits))
    ordered = sorted(pieces, key=lambda piece: (piece.start_byte, -piece.end_byte))
    data = bytearray(ordered[0].text.encode())
    start = ordered[0].start_byte
    for piece in ordered[1:]:
        overlap = start + len(data) - piece.start_byte
        assert overlap >= 0
        data += piece.text.encode()[overlap:]
    is_head = all(piece.signature_only for piece in pieces)
    return replace(ordered[0], text=data.decode(), hits=hits, signature_only=is_head)


def _best_first(placed: list[Piece]) -> tuple[float, tuple[str, str]]:
    best = max(hit.score for piece in placed for hit in piece.hits)
    return -best, placed[0].file


def _content(text: str) -> str:
    """Returns a text without what does not tell copies apart: its indentation, blank lines."""
    return "\n".join(line for each in text.splitlines() if (line := each.strip()))
