"""The files of a scoped run: paths, folders and globs, as a caller gave them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from services.indexer.errors import PathOutsideTreeError
from services.indexer.glob_set import GlobSet
from services.indexer.search.globs import is_open
from services.runtime.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_GLOB = re.compile(r"^(?:[^\\*?]|\\.)*[*?]", re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_IGNORE_SPECIAL = re.compile(r"([\\*?\[\]!# ])")
_MOST_INCLUDES = 256
"""Most patterns of one scan, by io's contract."""


class PathScope:
    """Tells which paths a scoped run covers.

    Args:
        entries: normal entries, as `normal_entries` returns them.
    """

    def __init__(self, entries: Iterable[str]) -> None:
        plain: list[str] = []
        globs: list[str] = []
        for entry in entries:
            (globs if _GLOB.search(entry) else plain).append(entry)
        self._files = frozenset(_ESCAPED.sub(r"\1", entry) for entry in plain)
        self._all = "." in self._files
        self._globs = GlobSet(globs)

    def __bool__(self) -> bool:
        return bool(self._files or self._globs)

    def takes(self, path: str) -> bool:
        """Tells whether a file is covered: named, beneath a named folder, or in a glob."""
        if self._all or path in self._files:
            return True
        if any(path[:position] in self._files for position in _slashes(path)):
            return True
        return self._globs.matches(path)

    def names(self) -> frozenset[str] | None:
        """Returns the files and folders that are covered; None where they cannot be named."""
        return None if self._all or self._globs else self._files

    def includes(self) -> list[str]:
        """Returns patterns that let a scan pass over other files; empty scans all of the tree.

        Names alone are told to io: what a glob matches is decided here, and here alone, so that no
        file looks deleted because two matchers differ.
        """
        if self._all or self._globs or len(self._files) > _MOST_INCLUDES:
            return []
        return sorted("/" + _IGNORE_SPECIAL.sub(r"\\\1", path) for path in self._files)


def normal_entries(paths: Sequence[str]) -> tuple[str, ...]:
    """Returns paths and globs in one form, without repetition.

    Raises:
        PathOutsideTreeError: one is absolute or leads out of the tree.
        InvalidRequestError: one is no path.
    """
    return tuple(dict.fromkeys(_normal(path) for path in paths))


def _normal(path: str) -> str:
    if "\0" in path or is_open(path):
        raise InvalidRequestError(
            "A path holds a NUL, or ends in an open escape.", metadata={"paths": "not a path"}
        )
    parts = [part for part in path.split("/") if part not in {"", "."}]
    if path.startswith("/") or ".." in parts:
        raise PathOutsideTreeError(
            "Paths are relative to the tree and stay in it.", metadata={"path": path[:200]}
        )
    # A glob that ends in a slash means all beneath.
    ending = "/**" if path.endswith("/") and _GLOB.search(path) else ""
    return "/".join(parts) + ending if parts else "."


def _slashes(path: str) -> list[int]:
    return [position for position, character in enumerate(path) if character == "/"]
