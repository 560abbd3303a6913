"""Ignore files: patterns in the syntax of `.gitignore`, compiled once for each file.

A pattern becomes a regular expression; on top lie sets and suffixes that decide most names without
one. The last pattern that matches decides, and of nested files the deepest that has one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

IGNORE_FILES = (".gitignore", ".ignore", ".lodestoneignore")
"""Names of ignore files; in one folder the later ones go before the earlier."""

MAX_IGNORE_FILE_BYTES = 1 << 20
MAX_PATTERNS = 10_000

_PLAIN = re.compile(r"[^*?\[\]\\]+")
_SUFFIX = re.compile(r"\*(\.[^*?\[\]\\/]+)")
_LITERAL = re.compile(r"(?:[^*?\[\\]|\\.)*", re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_BEFORE_WILDCARD = re.compile(r"[^*?\[\\]*")
_STARS_WITHIN_PART = re.compile(r"[^/*]\*\*+/")
_POSIX_CLASS = re.compile(r"\[:([^\]]*):\]")
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


@dataclass(frozen=True, slots=True)
class NameFilter:
    """Which names some patterns may match: cheap, by name alone, and true more often than not."""

    names: frozenset[str] = frozenset()
    suffixes: tuple[str, ...] = ()
    globs: tuple[Callable[[str], re.Match[str] | None], ...] = ()

    def may_match(self, name: str) -> bool:
        """Tells whether a pattern may match a path that ends in `name`."""
        if name in self.names or name.endswith(self.suffixes):
            return True
        for matches in self.globs:  # noqa: SIM110 - any() takes twice as long here
            if matches(name):
                return True
        return False

    def joined(self, other: NameFilter) -> NameFilter:
        """Returns the filter of both."""
        return NameFilter(
            self.names | other.names, self.suffixes + other.suffixes, self.globs + other.globs
        )


class IgnoreRules:
    """The patterns of one ignore file, or of a request."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._rules = [rule for line in lines if (rule := _rule(line)) is not None][:MAX_PATTERNS]
        self.filter = _filter_of(self._rules)
        self._reach = _reach_of(self._rules)

    def __bool__(self) -> bool:
        return bool(self._rules)

    def verdict(self, name: str, path: str, *, is_folder: bool) -> bool | None:
        """Tells whether a file or folder is ignored, or None when no pattern matches.

        `path` is relative to the folder of the ignore file and ends in `name`.
        """
        if not self.filter.may_match(name):
            return None
        for rule in reversed(self._rules):
            if rule.folders_only and not is_folder:
                continue
            if rule.regex.fullmatch(name if rule.by_name else path):
                return not rule.negated
        return None

    def may_match_beneath(self, path: str) -> bool:
        """Tells whether a pattern may match a folder or something in it; sure only of a no.

        A walk for what patterns name passes over all other folders, so that it costs what they
        name and not what the tree holds.
        """
        return self._reach.holds(path)


@dataclass(frozen=True, slots=True)
class _Reach:
    """The folders in which patterns may match."""

    anywhere: bool
    on_the_way: frozenset[str]
    beneath: tuple[str, ...]
    """Folders in which a glob may match at any depth, each with a `/` at its end."""

    def holds(self, folder: str) -> bool:
        return self.anywhere or folder in self.on_the_way or f"{folder}/".startswith(self.beneath)


@dataclass(frozen=True, slots=True)
class IgnoreStack:
    """The patterns that hold in a folder: the request's, then ignore files, the deepest first."""

    request: IgnoreRules
    levels: tuple[tuple[int, IgnoreRules], ...] = ()
    """Each with the length of its folder's path, `/` included."""
    filter: NameFilter = NameFilter()
    """Of all patterns: a walk asks it first, once a file."""

    @classmethod
    def of_request(cls, rules: IgnoreRules) -> IgnoreStack:
        """Returns the stack above a tree's top: what the caller leaves out goes before all else."""
        return cls(rules, (), rules.filter)

    def below(self, base_length: int, rules: IgnoreRules) -> IgnoreStack:
        """Returns the stack with one more ignore file, which goes before the others."""
        levels = ((base_length, rules), *self.levels)
        return IgnoreStack(self.request, levels, self.filter.joined(rules.filter))

    def ignores(self, name: str, path: str, *, is_folder: bool) -> bool:
        """Tells whether `path`, relative to the tree, is ignored."""
        if not self.filter.may_match(name):
            return False
        for base_length, rules in ((0, self.request), *self.levels):
            verdict = rules.verdict(name, path[base_length:], is_folder=is_folder)
            if verdict is not None:
                return verdict
        return False


def _filter_of(rules: Iterable[_Rule]) -> NameFilter:
    names: set[str] = set()
    suffixes: set[str] = set()
    regexes: list[str] = []
    for rule in rules:
        # A bracket may hold a `/`, which matches none, and a `**/` within a part one or none: then
        # no part of the glob is one by itself.
        is_whole = "[" in rule.glob or _STARS_WITHIN_PART.search(rule.glob)
        last = rule.glob if is_whole else rule.glob.rpartition("/")[2]
        if _PLAIN.fullmatch(last):
            names.add(last)
        elif suffix := _SUFFIX.fullmatch(last):
            suffixes.add(suffix[1])
        elif rule.by_name:
            regexes.append(rule.regex.pattern)
        else:
            regexes.append(".*")
    globs = (re.compile("|".join(dict.fromkeys(regexes)), re.DOTALL).fullmatch,) if regexes else ()
    return NameFilter(frozenset(names), tuple(suffixes), globs)


def _reach_of(rules: Iterable[_Rule]) -> _Reach:
    """Returns where the patterns may match; one of a name alone may match anywhere."""
    ways: set[str] = set()
    beneath: set[str] = set()
    for rule in rules:
        if rule.negated:
            continue
        literal = _LITERAL.match(rule.glob)
        assert literal is not None  # it matches the empty text
        is_whole = literal.end() == len(rule.glob)
        way = _ESCAPED.sub(r"\1", literal[0] if is_whole else literal[0].rpartition("/")[0])
        if rule.by_name or not way:
            return _Reach(anywhere=True, on_the_way=frozenset(), beneath=())
        ways.update(way[:at] for at, character in enumerate(way) if character == "/")
        ways.add(way)
        if not is_whole:
            beneath.add(f"{way}/")
    return _Reach(anywhere=False, on_the_way=frozenset(ways), beneath=tuple(beneath))


def _rule(line: str) -> _Rule | None:
    glob = _without_trailing_space(line)
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
    bare = line.rstrip(" ")
    backslashes = len(bare) - len(bare.rstrip("\\"))
    return bare + " " if backslashes % 2 and len(bare) < len(line) else bare


def glob_regex(glob: str) -> re.Pattern[str] | None:
    """Returns the regular expression of a glob without its leading and trailing `/`.

    None when the glob can match nothing, as with an open bracket or a lone backslash at its end.
    """
    tokens: list[str] = []
    position = 0
    literal = _BEFORE_WILDCARD.match(glob)
    assert literal is not None  # it matches the empty text
    while position < len(glob):
        character = glob[position]
        if character == "*":
            # git takes off what is literal before it matches: what follows starts a part to it.
            starts_part = position == literal.end() or glob[position - 1] == "/"
            token, position = _stars(glob, position, starts_part=starts_part)
        elif character == "?":
            token, position = "[^/]", position + 1
        elif character == "[":
            bracket = _bracket(glob, position)
            if bracket is None:
                return None
            token, position = bracket
        elif character == "\\":
            if position + 1 == len(glob):
                return None
            token, position = re.escape(glob[position + 1]), position + 2
        else:
            token, position = re.escape(character), position + 1
        tokens.append(token)
    try:
        return re.compile(_bounded(tokens), re.DOTALL)
    except re.error:
        return None


_STAR = "[^/]*"
_FOLDERS = "(?:[^/]*+/)*"


def _stars(glob: str, position: int, *, starts_part: bool) -> tuple[str, int]:
    """Returns the expression of the stars at `position` and where they end."""
    end = position
    while end < len(glob) and glob[end] == "*":
        end += 1
    if end - position >= 2 and starts_part:
        if end == len(glob):
            return ".*", end
        if glob[end] == "/":
            return _FOLDERS, end + 1
    return _STAR, end


def _bounded(tokens: Sequence[str]) -> str:
    """Returns the expression of a glob, which no name makes try more than its length squared.

    An ignore file comes with the tree and may be hostile: `*a*a*a*a*b` as a plain expression tries
    every way to share a long name among its stars. What stands between two stars may be taken where
    it is found first, as the star behind it takes all that a later place would have left over; so
    it is an atomic group, which is never tried again. The same holds between two `**/`, counted in
    folders. What stands last has to end with the name and is tried at each place.
    """
    *groups, last = _split(tokens, _FOLDERS)
    if not groups:
        return _between_stars(last, is_last=True)
    first, *middle = groups
    return "".join((
        _between_stars(first, is_last=False),
        *(f"(?>{_FOLDERS}?{_between_stars(group, is_last=False)})" for group in middle),
        _FOLDERS,
        _between_stars(last, is_last=True),
    ))  # fmt: skip


def _between_stars(tokens: Sequence[str], *, is_last: bool) -> str:
    first, *rest = ("".join(segment) for segment in _split(tokens, _STAR))
    end = f"{_STAR}{rest.pop()}" if rest and is_last else ""
    return first + "".join(f"(?>{_STAR}?{segment})" for segment in rest) + end


def _split(tokens: Sequence[str], at: str) -> list[list[str]]:
    groups: list[list[str]] = [[]]
    for token in tokens:
        if token == at:
            groups.append([])
        else:
            groups[-1].append(token)
    return groups


def _bracket(glob: str, start: int) -> tuple[str, int] | None:
    """Returns the expression of the bracket at `start` and where it ends.

    None when it is open or names a class that there is not: then git matches nothing either.
    """
    position = start + 1
    negated = position < len(glob) and glob[position] in "!^"
    first = position = position + negated
    members: list[str] = []
    low: str | None = None  # what a `-` that follows would be a range from
    while position < len(glob) and (position == first or glob[position] != "]"):
        if posix := _POSIX_CLASS.match(glob, position):
            if posix[1] not in _POSIX_CLASSES:
                return None
            members.append(_POSIX_CLASSES[posix[1]])
            low, position = None, posix.end()
            continue
        is_range = (
            glob[position] == "-"
            and low is not None
            and glob[position + 1 : position + 2] not in {"", "]"}
        )
        position += is_range
        position += glob[position] == "\\" and position + 1 < len(glob)
        member = glob[position]
        if not is_range:
            members.append(re.escape(member))
        elif low is not None and low <= member:
            members.append(f"{re.escape(low)}-{re.escape(member)}")
        low = None if is_range else member
        position += 1
    if position >= len(glob):
        return None
    body = "".join(members)
    return (f"[^/{body}]" if negated else f"(?!/)[{body}]"), position + 1
