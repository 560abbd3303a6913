"""Text that has to stay in one line."""

from __future__ import annotations


def one_line(text: str) -> str:
    """Returns a text without ends of lines: names of files may hold them."""
    return " ".join(text.splitlines())
