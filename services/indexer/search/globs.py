"""Globs of paths as regular expressions that PostgreSQL reads."""

from __future__ import annotations

import re
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_TOKENS = re.compile(r"\*\*/|\*\*|\*|\?|\\.?|[^*?\\]+", re.DOTALL)
_OPEN_ESCAPE = re.compile(r"(?<!\\)(?:\\\\)*\\\Z")
_SPECIAL = re.compile(r"([\\^$.|+*?(){}\[\]])")


class Step(Enum):
    """A wildcard, with its regular expression."""

    SIGN = "[^/]"
    NAME = "[^/]*"
    ANYTHING = ".*"
    FOLDERS = "(.*/)?"


_WILDCARDS = {"?": Step.SIGN, "*": Step.NAME, "**": Step.ANYTHING, "**/": Step.FOLDERS}


def is_open(pattern: str) -> bool:
    """Tells whether a pattern ends in an escape of nothing."""
    return bool(_OPEN_ESCAPE.search(pattern))


def glob_to_regex(pattern: str) -> str:
    """Returns an anchored expression of what `glob_steps` says."""
    return f"^{''.join(map(_regex_of, glob_steps(pattern)))}$"


def glob_steps(pattern: str) -> list[Step | str]:
    r"""Returns wildcards and plain text: `*` and `?` stay in a folder, `**` crosses folders.

    A pattern without a slash matches names in any folder; one that begins with a slash begins at
    the top, and one that ends in a slash matches all beneath it. `\` takes the next sign as it is.
    """
    pattern = f"{pattern}**" if pattern.endswith("/") else pattern
    anchored = "/" in pattern.rstrip("*")
    steps: list[Step | str] = [] if anchored else [Step.FOLDERS]
    for token in _TOKENS.findall(pattern.removeprefix("/")):
        _add(steps, _step_of(token))
    return steps


def globs_to_regex(patterns: Sequence[str]) -> str:
    """Returns one expression that matches what any of the patterns does.

    One for each would be slow: PostgreSQL keeps no more than 32, and reads others for each row.
    """
    return "|".join(map(glob_to_regex, dict.fromkeys(patterns)))


def wildcards(patterns: Sequence[str]) -> int:
    """Returns how many `*` and `?` patterns have, those that are taken as they are included."""
    return sum(pattern.count("*") + pattern.count("?") for pattern in patterns)


def _add(steps: list[Step | str], step: Step | str) -> None:
    """Adds a step that says more: of folders in a row PostgreSQL reads some hundred in minutes."""
    if step not in {Step.FOLDERS, Step.ANYTHING}:
        steps.append(step)
        return
    while steps and steps[-1] == Step.FOLDERS:  # what is beneath any folders is also anything
        if step == Step.FOLDERS:
            return
        steps.pop()
    if steps[-1:] != [Step.ANYTHING]:
        steps.append(step)


def _step_of(token: str) -> Step | str:
    if token in _WILDCARDS:
        return _WILDCARDS[token]
    return token[1:] or token if token.startswith("\\") else token


def _regex_of(step: Step | str) -> str:
    return step.value if isinstance(step, Step) else _SPECIAL.sub(r"\\\1", step)
