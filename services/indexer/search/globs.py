"""Globs of paths as regular expressions that PostgreSQL reads."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_TOKENS = re.compile(r"\*\*/|\*\*|\*|\?|\\.?|[^*?\\]+", re.DOTALL)
_OPEN_ESCAPE = re.compile(r"(?<!\\)(?:\\\\)*\\\Z")
_SPECIAL = re.compile(r"([\\^$.|+*?(){}\[\]])")
_FOLDERS, _ANYTHING = "(.*/)?", ".*"


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
    parts = [] if anchored else [_FOLDERS]
    for token in _TOKENS.findall(pattern.removeprefix("/")):
        _add(parts, _translate(token))
    return f"^{''.join(parts)}$"


def globs_to_regex(patterns: Sequence[str]) -> str:
    """Returns one expression that matches what any of the patterns does.

    One for each would be slow: PostgreSQL keeps no more than 32, and reads others for each row.
    """
    return "|".join(map(glob_to_regex, dict.fromkeys(patterns)))


def wildcards(patterns: Sequence[str]) -> int:
    """Returns how many `*` and `?` patterns have, those that are taken as they are included."""
    return sum(pattern.count("*") + pattern.count("?") for pattern in patterns)


def _add(parts: list[str], part: str) -> None:
    """Adds a part that says more: of folders in a row PostgreSQL reads some hundred in minutes."""
    if part not in {_FOLDERS, _ANYTHING}:
        parts.append(part)
        return
    while parts and parts[-1] == _FOLDERS:  # what is beneath any folders is also anything
        if part == _FOLDERS:
            return
        parts.pop()
    if parts[-1:] != [_ANYTHING]:
        parts.append(part)


def _translate(token: str) -> str:
    match token:
        case "**/":
            return _FOLDERS
        case "**":
            return _ANYTHING
        case "*":
            return "[^/]*"
        case "?":
            return "[^/]"
        case _:
            plain = token[1:] or token if token.startswith("\\") else token
            return _SPECIAL.sub(r"\\\1", plain)
