"""Sections of Markdown by their headings."""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.io.model import NodeKind, Span
from services.io.parser.draft import Draft

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services.io.parser.draft import NodeBuilder

NAME_SEPARATOR = " > "
_ATX = re.compile(rb" {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*\r?\n?")
_SETEXT = re.compile(rb" {0,3}(=+|-+)[ \t]*\r?\n?")
_FENCE = re.compile(rb" {0,3}(`{3,}|~{3,})(.*)", re.DOTALL)
_NO_PARAGRAPH = re.compile(rb"[ \t]*(?:[#>|]|[-*+][ \t]|\d+[.)][ \t]|\r?\n|$)|(?: {4}|\t)")
_BREAK = re.compile(rb" {0,3}(?:(?:-[ \t]*){3,}|(?:_[ \t]*){3,}|(?:\*[ \t]*){3,})\r?\n?")
_FRONT_MATTER = re.compile(rb"(---|\+\+\+)[ \t]*\r?\n?")
_COMMENT = re.compile(rb" {0,3}<!--")
_MAX_TITLE_CHARACTERS = 120


@dataclass(frozen=True, slots=True)
class _Heading:
    start: int
    level: int
    title: str


def add_sections(builder: NodeBuilder) -> None:
    """Adds a node for each heading and what follows it, named by the path of headings.

    A section ends at the next heading of any level; long ones are split between paragraphs.

    Raises:
        TooManyNodesError: the file has too many.
    """
    data = builder.data
    begin = len(BOM_UTF8) if data.startswith(BOM_UTF8) else 0
    headings = list(_headings(data, begin))
    end = len(data)
    first = headings[0].start if headings else end
    _add(builder, "", Span(begin, first))
    path: list[_Heading] = []
    for heading, following in zip(headings, [*headings[1:], None], strict=False):
        path = [*(above for above in path if above.level < heading.level), heading]
        name = NAME_SEPARATOR.join(above.title for above in path)
        _add(builder, name, Span(heading.start, following.start if following else end))


def _add(builder: NodeBuilder, name: str, span: Span) -> None:
    if span.start == span.end:
        return
    draft = Draft(NodeKind.SECTION, name, 0, span)
    tokens = builder.tokens(span)
    if tokens <= builder.budget:
        builder.add(draft, tokens)
        return
    text = builder.data[span.start : span.end]
    cuts = [span.start + match.end() for match in re.finditer(rb"\n[ \t\r]*\n", text)]
    newline = text.find(b"\n")
    signature = Span(span.start, span.start + newline) if name and newline > 0 else None
    builder.add_split(Draft(draft.kind, name, 0, span, (), signature), cuts)


def _headings(data: bytes, begin: int) -> Iterator[_Heading]:
    """Yields headings, ATX and setext, outside fenced code, comments and front matter."""
    fence = b""
    in_comment = False
    paragraph = -1  # where the paragraph that this line goes on began
    lines = data[begin:].splitlines(keepends=True)
    front = _front_matter_lines(lines)
    position = begin + sum(map(len, lines[:front]))
    for line in lines[front:]:
        start, position = position, position + len(line)
        if in_comment or (not fence and _COMMENT.match(line)):
            in_comment, paragraph = b"-->" not in line, -1
            continue
        mark = _FENCE.fullmatch(line)
        if fence:
            if mark and mark[1].startswith(fence) and not mark[2].strip():
                fence = b""
            continue
        if mark and not (mark[1].startswith(b"`") and b"`" in mark[2]):
            fence, paragraph = mark[1], -1
        elif atx := _ATX.fullmatch(line):
            yield _Heading(start, len(atx[1]), _title(atx[2] or b""))
            paragraph = -1
        elif paragraph >= 0 and (setext := _SETEXT.fullmatch(line)):
            level = 1 if setext[1].startswith(b"=") else 2
            yield _Heading(paragraph, level, _title(data[paragraph:start]))
            paragraph = -1
        elif _NO_PARAGRAPH.match(line) or _BREAK.fullmatch(line):
            paragraph = -1
        elif paragraph < 0:
            paragraph = start


def _front_matter_lines(lines: list[bytes]) -> int:
    """Returns how many lines at the start are data about the document, with the marks around."""
    opening = _FRONT_MATTER.fullmatch(lines[0]) if lines else None
    if opening is None or not (len(lines) > 1 and lines[1].strip()):
        return 0  # above a blank line it is a mere line across
    ends = (
        number
        for number, line in enumerate(lines[1:], start=2)
        if (mark := _FRONT_MATTER.fullmatch(line)) and mark[1] == opening[1]
    )
    return next(ends, 0)


def _title(raw: bytes) -> str:
    return " ".join(raw.decode(errors="ignore").split())[:_MAX_TITLE_CHARACTERS]
