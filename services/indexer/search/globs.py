"""Globs of paths as regular expressions that PostgreSQL reads."""

from __future__ import annotations

import re

_TOKENS = re.compile(r"\*\*/|\*\*|\*|\?|\\.?|[^*?\\]+", re.DOTALL)
_OPEN_ESCAPE = re.compile(r"(?<!\\)(?:\\\\)*\\\Z")
_SPECIAL = re.compile(r"([\\^$.|+*?(){}\[\]])")


def is_open(pattern: str) -> bool:
    """Tells whether a pattern ends in an escape of nothing."""
    return bool(_OPEN_ESCAPE.search(pattern))


def glob_to_regex(pattern: str) -> str:
    r"""Returns an anchored expression: `*` and `?` stay in a folder, `**` crosses folders.

    A pattern without a slash matches names in any folder; one that begins with a slash begins at
    the top, and one that ends in a slash matches all beneath it. `\` takes the next sign as it is.
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
            plain = token[1:] or token if token.startswith("\\") else token
            return _SPECIAL.sub(r"\\\1", plain)
