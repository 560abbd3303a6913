"""Cuts a declaration before its body, by a rule on its text.

The parser knows where a body begins but tells the indexer spans of nodes alone, so the rule is of
the text: brackets, strings and comments are told apart, and the body begins at the first brace, or
in Python the first colon, outside all brackets. Languages of neither kind give their first line
that leaves no bracket open. A brace in a return type is taken for the body's.
"""

from __future__ import annotations

import re
from enum import StrEnum

MOST_LINES = 40
"""Longer heads are no summary of anything."""

_COLON = frozenset({"python"})
_LINE = frozenset({"ruby"})
_HASH_COMMENTS = frozenset({"python", "ruby", "bash", "php"})
_PLAIN = frozenset({"", "text", "markdown"})
_NO_SINGLE_QUOTES = frozenset({"rust", "swift", "scala"})
"""There `'` begins a lifetime, a symbol or nothing."""

_NO_CODE = ("#", "//", "/*", "@")

_TOKEN = re.compile(
    r"(?P<comment>//[^\n]*|/\*.*?(?:\*/|\Z))"
    r"|(?P<hash>\#[^\n]*)"
    r'|(?P<long>"{3}.*?(?:"{3}|\Z)|\'{3}.*?(?:\'{3}|\Z))'
    r'|(?P<double>"(?:\\.|[^"\\\n])*"?)'
    r"|(?P<single>'(?:\\.|[^'\\\n])*'?)"
    r"|(?P<back>`(?:\\.|[^`\\])*`?)"
    r"|(?P<mark>[(){}\[\]:;\n])",
    re.DOTALL,
)


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
    for match in _tokens(text, language):
        mark = match[0]
        if rule is _Rule.BRACE and mark in {"{", ";"} and depth == 0:
            return match.start()
        if rule is _Rule.COLON and mark == ":" and depth == 0:
            return match.end()
        if mark in {"(", "[", "{"}:
            depth += 1
        elif mark in {")", "]", "}"}:
            depth = max(0, depth - 1)
        elif mark == "\n" and depth == 0 and _has_code(text[: match.start()]):
            if rule is _Rule.LINE:
                return match.start()
            last_line = last_line or match.start()
    return last_line if rule is _Rule.BRACE else None


def _tokens(text: str, language: str) -> list[re.Match[str]]:
    """Returns the brackets and ends of lines that stand outside strings and comments."""
    found = []
    position = 0
    while match := _TOKEN.search(text, position):
        position = match.end()
        kind = match.lastgroup
        if (
            (kind == "comment" and language in _HASH_COMMENTS - {"php"})
            or (kind == "hash" and language not in _HASH_COMMENTS)
            or (kind == "single" and language in _NO_SINGLE_QUOTES)
        ):
            position = match.start() + 1  # means something else in this language
        elif kind == "mark":
            found.append(match)
    return found


def _has_code(text: str) -> bool:
    """Tells whether the last line of a text holds more than a comment or an attribute."""
    line = text.rpartition("\n")[2].strip()
    return bool(line) and not line.startswith(_NO_CODE) and not line.endswith("*/")


def _rule(language: str) -> _Rule:
    if language in _COLON:
        return _Rule.COLON
    return _Rule.LINE if language in _LINE else _Rule.BRACE
