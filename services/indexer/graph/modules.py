"""Which files a module's name means, by their paths alone."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from services.indexer.graph.model import SourceFile

_SUFFIX = re.compile(r"(/(__init__|index|mod))?\.[^./]*$")
_EXTENSION = re.compile(r"\.[^./]*$")
_RELATIVE = frozenset({".", ".."})

_WHOLE = frozenset({"python", "java", "kotlin", "scala", "bash", "ruby", "c", "cpp"})
"""Languages whose imports name all folders from a root on, so a file ends with all of it."""

_SCRIPTS = frozenset({"javascript", "typescript", "tsx"})
"""Languages in which a module without a path is a package from elsewhere."""

CRATE_FILES = frozenset({"lib.rs", "main.rs"})
"""Files that a crate of Rust begins with."""


def module_path(path: str) -> str:
    """Returns the name by which a file is imported: `a/b` for `a/b.py` and `a/b/index.js`."""
    return _SUFFIX.sub("", path)


def folder_of(path: str) -> str:
    """Returns the folder of a file, empty for the top."""
    return path.rpartition("/")[0]


def module_ends(path: str, language: str) -> set[str]:
    """Returns the last parts of names that may mean a file, alone or as a part of its folder."""
    whole = () if language == "python" else (folder_of(path),)
    return {name.rpartition("/")[2] for name in (*_names_of(path), *whole) if name}


def is_relative(module: str) -> bool:
    """Tells whether a module is named from the folder of the file that imports it."""
    return module.partition("/")[0] in _RELATIVE


def absolute(module: str, path: str) -> str | None:
    """Returns a relative module's path in the tree; None when it leads out of the tree."""
    parts = folder_of(path).split("/") if folder_of(path) else []
    for part in module.split("/"):
        if part == "..":
            if not parts:
                return None
            parts.pop()
        elif part and part != ".":
            parts.append(part)
    return "/".join(parts)


def stem_of(module: str) -> str:
    """Returns what a file's own name must be for a module to mean it."""
    return _EXTENSION.sub("", module.rpartition("/")[2])


def crate_folders(module: str, path: str) -> list[str]:
    """Returns the folders, nearest first, in which a crate of Rust may begin that a module means.

    No name means the file's own crate, and a folder above the file may be that of one.
    """
    if is_relative(module):
        place = absolute(module, path)
        return [] if place is None else [place]
    if module:
        return []
    parts = path.split("/")[:-1]
    return ["/".join(parts[:count]) for count in range(len(parts), -1, -1)]


def above(path: str, supers: int) -> str:
    """Returns the module that so many `super` mean in a file of Rust."""
    levels = supers - (path.rpartition("/")[2] not in CRATE_FILES | {"mod.rs"})
    return "/".join([".."] * levels) or "."


def is_elsewhere(module: str, language: str) -> bool:
    """Tells whether a module is of another package for sure."""
    return not module or (language in _SCRIPTS and not is_relative(module) and "/" not in module)


def choose_files(
    module: str, path: str, language: str, candidates: Iterable[SourceFile]
) -> list[SourceFile]:
    """Returns the files that a module means, those nearest to the importing file.

    Args:
        module: as it is imported.
        path: the importing file's.
        language: the importing file's.
        candidates: files whose own names fit.
    """
    if is_relative(module):
        wanted = absolute(module, path)
        return [file for file in candidates if wanted in _names_of(file.path)]
    fitting = [file for file in candidates if _fits(module, file.path, language)]
    nearest = max((_shared(file.path, path) for file in fitting), default=0)
    return [file for file in fitting if _shared(file.path, path) == nearest]


def choose_in_folder(
    module: str, path: str, language: str, candidates: Iterable[SourceFile]
) -> list[SourceFile]:
    """Returns the files of the folder that a module means; as `choose_files`."""
    if is_relative(module):
        wanted = absolute(module, path)
        return [file for file in candidates if folder_of(file.path) == wanted]
    fitting = [file for file in candidates if _fits(module, folder_of(file.path), language)]
    nearest = max((_shared(file.path, path) for file in fitting), default=0)
    return [file for file in fitting if _shared(file.path, path) == nearest]


def root_of(module: str, path: str) -> str:
    """Returns the folder that a module, which the file ends with, is named from."""
    return module_path(path)[: -len(module)].rstrip("/")


def _names_of(path: str) -> tuple[str, ...]:
    """Returns the names that mean a file: with and without its ending."""
    return module_path(path), _EXTENSION.sub("", path), path


def _fits(module: str, path: str, language: str) -> bool:
    wanted = module.split("/")
    longest = max(_overlap(wanted, name.split("/")) for name in _names_of(path))
    if longest == len(wanted):
        return len(wanted) > 1 or language not in _SCRIPTS
    if language in _WHOLE or longest == 0:
        return False
    # A name that begins outside of the tree, as in `example.com/project/folder`.
    whole = longest == len(path.split("/"))
    return longest > 1 or (whole and "." in wanted[0])


def _overlap(first: list[str], second: list[str]) -> int:
    """Returns how many parts two names share at their ends."""
    shared = 0
    for one, other in zip(reversed(first), reversed(second), strict=False):
        if one != other:
            break
        shared += 1
    return shared


def _shared(first: str, second: str) -> int:
    """Returns how many folders two paths share at their beginnings."""
    shared = 0
    for one, other in zip(folder_of(first).split("/"), folder_of(second).split("/"), strict=False):
        if one != other:
            break
        shared += 1
    return shared
