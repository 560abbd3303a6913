"""Globs of paths as regular expressions that PostgreSQL reads."""

from __future__ import annotations

import re

_TOKENS = re.compile(r"\*\*/|\*\*|\*|\?|[^*?]+")
_SPECIAL = re.compile(r"([\\^$.|+(){}\[\]])")


def glob_to_regex(pattern: str) -> str:
    """Returns an anchored expression: `*` and `?` stay in a folder, `**` crosses folders.

    A pattern without a slash matches names in any folder; one that ends in a slash, all beneath it.
    """
    pattern = f"{pattern}**" if pattern.endswith("/") else pattern
    anchored = "/" in pattern.rstrip("*")
    parts = [_translate(token) for token in _TOKENS.findall(pattern.removeprefix("/"))]
    return f"^{'' if anchored else '(.*/)?'}{''.join(parts)}$"


def _translate(token: str) -> str:
    match token:
        case "**/":
            return "(.*/)?"
        case "**":
            return ".*"
        case "*":
            return "[^/]*"
        case "?":
            return "[^/]"
        case _:
            return _SPECIAL.sub(r"\\\1", token)
