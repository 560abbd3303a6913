"""Cuts a declaration before its body, by a rule on its text.

The parser knows where a body begins but tells the indexer spans of nodes alone, so the rule is of
the text: brackets, strings and comments are told apart, and the body begins at the first brace, or
in Python the first colon, outside all brackets. Languages of neither kind give their first line
that leaves no bracket open. A brace in a return type is taken for the body's.
"""

from __future__ import annotations

import re
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_LINES = 40
"""Longer heads are no summary of anything."""

_COLON = frozenset({"python"})
_LINE = frozenset({"ruby"})
_HASH_COMMENTS = frozenset({"python", "ruby", "bash", "php"})
_PLAIN = frozenset({"", "text", "markdown"})
_NO_SINGLE_QUOTES = frozenset({"rust", "swift", "scala"})
"""There `'` begins a lifetime, a symbol or nothing."""

_NO_CODE = ("#", "//", "/*", "@")

_SLASHES = r"//[^\n]*|/\*.*?(?:\*/|\Z)"
_HASH = r"\#[^\n]*"
_SINGLE = r"'(?:\\.|[^'\\\n])*'?"
_STRINGS = (
    r'"{3}.*?(?:"{3}|\Z)|\'{3}.*?(?:\'{3}|\Z)',
    r'"(?:\\.|[^"\\\n])*"?',
    r"`(?:\\.|[^`\\])*`?",
)
_MARK = r"(?P<mark>[(){}\[\]:;\n])"


class _Rule(StrEnum):
    BRACE = "brace"
    COLON = "colon"
    LINE = "line"


def signature_of(text: str, language: str) -> str | None:
    """Returns what a declaration's text holds before its body, trailing space left out.

    None when the language has no declarations, no body was found, or the head is not shorter.
    """
    if language in _PLAIN:
        return None
    end = _head_end(text, language)
    head = text[:end].rstrip() if end else ""
    if not head or len(head) >= len(text.rstrip()) or head.count("\n") >= MOST_LINES:
        return None
    return head


def _head_end(text: str, language: str) -> int | None:
    rule = _rule(language)
    depth = 0
    last_line = None
    for match in _marks(text, language):
        mark = match[0]
        if rule is _Rule.BRACE and mark in {"{", ";"} and depth == 0:
            return match.start()
        if rule is _Rule.COLON and mark == ":" and depth == 0:
            return match.end()
        if mark in {"(", "[", "{"}:
            depth += 1
        elif mark in {")", "]", "}"}:
            depth = max(0, depth - 1)
        elif mark == "\n" and depth == 0 and _ends_code(text, match.start()):
            if rule is _Rule.LINE:
                return match.start()
            last_line = last_line or match.start()
    return last_line if rule is _Rule.BRACE else None


def _marks(text: str, language: str) -> Iterator[re.Match[str]]:
    """Yields the brackets and ends of lines that stand outside strings and comments."""
    return (match for match in _tokens(language).finditer(text) if match["mark"])


@cache
def _tokens(language: str) -> re.Pattern[str]:
    """Returns what a language has: no sign is read twice as what means something else in it."""
    kinds = [
        () if language in _HASH_COMMENTS - {"php"} else (_SLASHES,),
        (_HASH,) if language in _HASH_COMMENTS else (),
        _STRINGS,
        () if language in _NO_SINGLE_QUOTES else (_SINGLE,),
        (_MARK,),
    ]
    return re.compile("|".join(part for kind in kinds for part in kind), re.DOTALL)


def _ends_code(text: str, end: int) -> bool:
    """Tells whether the line of a text that ends there holds more than a comment or attribute."""
    line = text[text.rfind("\n", 0, end) + 1 : end].strip()
    return bool(line) and not line.startswith(_NO_CODE) and not line.endswith("*/")


def _rule(language: str) -> _Rule:
    if language in _COLON:
        return _Rule.COLON
    return _Rule.LINE if language in _LINE else _Rule.BRACE
