"""Lines of a text, cut to what one answer may hold."""

from __future__ import annotations

from dataclasses import dataclass

MOST_LINES = 2000
MOST_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Lines:
    """Some lines of a text."""

    text: str
    """With the ends of lines; a line that is too long alone is left out."""
    start: int
    """Number of the first, from 1."""
    end: int
    """Number of the last, inclusive; `start - 1` when there is none."""
    line_count: int
    """Lines in the whole text."""


def cut_lines(text: str, start: int, end: int) -> Lines:
    """Returns the lines from `start` to `end`, 1-based, inclusive; 0 is the first or the last.

    At most 2000 lines of together at most 256 KiB: fewer come back when there are more.
    """
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    first = max(start, 1)
    last = min(end or len(lines), len(lines), first + MOST_LINES - 1)
    kept: list[str] = []
    size_bytes = 0
    for number in range(first, last + 1):
        line = lines[number - 1]
        # The last line may lack its end.
        line += "\n" if number < len(lines) or text.endswith("\n") else ""
        size_bytes += len(line.encode())
        if size_bytes > MOST_BYTES:
            break
        kept.append(line)
    return Lines("".join(kept), first, first + len(kept) - 1, len(lines))
