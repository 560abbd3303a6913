"""Ignore files: patterns in the syntax of `.gitignore`, compiled once for each file.

A pattern becomes a regular expression; on top lie sets and suffixes that decide most names without
one. The last pattern that matches decides, and of nested files the deepest that has one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

IGNORE_FILES = (".gitignore", ".ignore", ".lodestoneignore")
"""Names of ignore files; in one folder the later ones go before the earlier."""

MAX_IGNORE_FILE_BYTES = 1 << 20
MAX_PATTERNS = 10_000

_PLAIN = re.compile(r"[^*?\[\]\\]+")
_SUFFIX = re.compile(r"\*(\.[^*?\[\]\\/]+)")
_POSIX_CLASSES = {
    "alpha": "a-zA-Z", "digit": "0-9", "alnum": "a-zA-Z0-9", "upper": "A-Z", "lower": "a-z",
    "space": r"\s", "blank": r" \t", "xdigit": "0-9a-fA-F", "punct": r"!-/:-@\[-`{-~",
    "cntrl": r"\x00-\x1f\x7f", "graph": "!-~", "print": " -~",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Rule:
    glob: str
    negated: bool
    folders_only: bool
    by_name: bool
    regex: re.Pattern[str]


class IgnoreRules:
    """The patterns of one ignore file, or of a request."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._rules = [rule for line in lines if (rule := _rule(line)) is not None][:MAX_PATTERNS]
        self._names: set[str] = set()
        suffixes: set[str] = set()
        name_regexes: list[str] = []
        path_regexes: list[str] = []
        for rule in self._rules:
            if not rule.by_name:
                path_regexes.append(rule.regex.pattern)
            elif _PLAIN.fullmatch(rule.glob):
                self._names.add(rule.glob)
            elif suffix := _SUFFIX.fullmatch(rule.glob):
                suffixes.add(suffix[1])
            else:
                name_regexes.append(rule.regex.pattern)
        self._suffixes = tuple(suffixes)
        self._name_regex = re.compile("|".join(name_regexes)) if name_regexes else None
        self._path_regex = re.compile("|".join(path_regexes)) if path_regexes else None

    def __bool__(self) -> bool:
        return bool(self._rules)

    def verdict(self, name: str, path: str, *, is_folder: bool) -> bool | None:
        """Tells whether a file or folder is ignored, or None when no pattern matches.

        `path` is relative to the folder of the ignore file and ends in `name`.
        """
        if not self._may_match(name, path):
            return None
        for rule in reversed(self._rules):
            if rule.folders_only and not is_folder:
                continue
            if rule.regex.fullmatch(name if rule.by_name else path):
                return not rule.negated
        return None

    def _may_match(self, name: str, path: str) -> bool:
        return (
            name in self._names
            or (bool(self._suffixes) and name.endswith(self._suffixes))
            or (self._name_regex is not None and self._name_regex.fullmatch(name) is not None)
            or (self._path_regex is not None and self._path_regex.fullmatch(path) is not None)
        )


@dataclass(frozen=True, slots=True)
class IgnoreStack:
    """The ignore files that hold in a folder, the deepest first."""

    levels: tuple[tuple[int, IgnoreRules], ...] = ()
    """Each with the length of its folder's path, `/` included."""

    def below(self, base_length: int, rules: IgnoreRules) -> IgnoreStack:
        """Returns the stack with one more ignore file, which goes before the others."""
        return IgnoreStack(((base_length, rules), *self.levels))

    def ignores(self, name: str, path: str, *, is_folder: bool) -> bool:
        """Tells whether `path`, relative to the tree, is ignored."""
        for base_length, rules in self.levels:
            verdict = rules.verdict(name, path[base_length:], is_folder=is_folder)
            if verdict is not None:
                return verdict
        return False


def _rule(line: str) -> _Rule | None:
    glob = _without_trailing_space(line.rstrip("\r\n"))
    if not glob or glob.startswith("#"):
        return None
    negated = glob.startswith("!")
    glob = glob[1:] if negated else glob
    folders_only = glob.endswith("/")
    glob = glob[:-1] if folders_only else glob
    by_name = "/" not in glob
    glob = glob.removeprefix("/")
    pattern = glob_regex(glob) if glob else None
    if pattern is None:
        return None
    return _Rule(glob, negated, folders_only, by_name, pattern)


def _without_trailing_space(line: str) -> str:
    end = len(line)
    while end and line[end - 1] == " " and not (end > 1 and line[end - 2] == "\\"):
        end -= 1
    return line[:end]


def glob_regex(glob: str) -> re.Pattern[str] | None:
    """Returns the regular expression of a glob without its leading and trailing `/`.

    None when the glob can match nothing, as with an open bracket or a lone backslash at its end.
    """
    pieces: list[str] = []
    position = 0
    while position < len(glob):
        character = glob[position]
        if character == "*":
            piece, position = _stars(glob, position)
        elif character == "?":
            piece, position = "[^/]", position + 1
        elif character == "[":
            bracket = _bracket(glob, position)
            if bracket is None:
                return None
            piece, position = bracket
        elif character == "\\":
            if position + 1 == len(glob):
                return None
            piece, position = re.escape(glob[position + 1]), position + 2
        else:
            piece, position = re.escape(character), position + 1
        pieces.append(piece)
    try:
        return re.compile("".join(pieces), re.DOTALL)
    except re.error:
        return None


def _stars(glob: str, position: int) -> tuple[str, int]:
    """Returns the expression of the stars at `position` and where they end."""
    end = position
    while end < len(glob) and glob[end] == "*":
        end += 1
    starts_part = position == 0 or glob[position - 1] == "/"
    if end - position >= 2 and starts_part:
        if end == len(glob):
            return ".+" if position else ".*", end
        if glob[end] == "/":
            return "(?:[^/]+/)*", end + 1
    return "[^/]*", end


def _bracket(glob: str, start: int) -> tuple[str, int] | None:
    """Returns the expression of the bracket at `start` and where it ends, None if it is open."""
    position = start + 1
    negated = position < len(glob) and glob[position] in "!^"
    position += negated
    members: list[str] = []
    first = True
    while position < len(glob) and (first or glob[position] != "]"):
        first = False
        posix = re.compile(r"\[:(\w+):\]").match(glob, position)
        if posix and posix[1] in _POSIX_CLASSES:
            members.append(_POSIX_CLASSES[posix[1]])
            position = posix.end()
            continue
        if glob[position] == "\\" and position + 1 < len(glob):
            position += 1
            members.append(re.escape(glob[position]))
        elif glob[position] == "-":
            members.append("-" if members and glob[position + 1 : position + 2] != "]" else r"\-")
        else:
            members.append(re.escape(glob[position]))
        position += 1
    if position >= len(glob):
        return None
    body = "".join(members)
    return (f"[^/{body}]" if negated else f"(?!/)[{body}]"), position + 1
