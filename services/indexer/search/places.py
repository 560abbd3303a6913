"""What the path of a file says of it: its subject, and whether it is a test, a document or aside.

The patterns are the customs of the languages' build tools and test frameworks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from services.indexer.search.asides import Aside, asides_of
from services.indexer.search.terms import stems

if TYPE_CHECKING:
    from collections.abc import Mapping

_TEST_FOLDERS = re.compile(
    r"(^|/)(_?tests?|testing|test[-_]?data|__tests__|__mocks__|mocks|specs?|fixtures?|e2e|"
    r"bench(es|marks?)?|[a-z0-9]+Test|src/test)/"
)
_TEST_NAMES = re.compile(
    r"(^|/)(test[_-]|conftest\.)[^/]*$|[._-](tests?|specs?|bench)\.[^/]*$|(^|/)tests?\.\w+$"
    r"|[a-z0-9](Tests?|Spec|TestCase|IT)\.(java|kt|kts|scala|cs|fs|vb|swift|php|groovy|m|hs|cpp)$"
)
_DOCUMENTS = re.compile(
    r"\.(md|mdx|mkd|markdown|rst|txt|adoc|rdoc|pod|org|ipynb)$|(^|/)(docs?|docs_src|documentation|"
    r"man)/|(^|/)(change(s|log)|readme|licen[cs]e|news|history|authors|copying)[^/]*$",
    re.IGNORECASE,
)
_VERSION = re.compile(r"(?:(?<=/)|^)v(\d+)(?=/)")
_NAMELESS = frozenset({"mod", "index", "init", "main", "lib", "package"})
"""Stems of files that are called after their folder."""


@dataclass(frozen=True, slots=True)
class Place:
    """A path, read once."""

    subject: tuple[str, ...]
    """Stems of the words of the file's name, of its folder's where the name says nothing."""

    folders: frozenset[str]
    """Stems of the words of the folders."""

    is_test: bool
    is_document: bool
    asides: frozenset[Aside]
    """Why it stands beside the main code, if it does."""

    versions: tuple[tuple[str, int], ...]
    """Folders `v<number>` in the path, each as what is before it, and the number."""


@lru_cache(maxsize=16384)
def read_place(path: str) -> Place:
    """Returns what a path says."""
    folder, _, name = path.rpartition("/")
    base = name.lstrip("._").partition(".")[0]
    if base.lower().strip("_") in _NAMELESS and folder:
        base = folder.rpartition("/")[2]
    return Place(
        subject=stems(base),
        folders=frozenset(stems(folder)),
        is_test=bool(_TEST_FOLDERS.search(path) or _TEST_NAMES.search(path)),
        is_document=bool(_DOCUMENTS.search(path)) and name != "CMakeLists.txt",
        asides=asides_of(path),
        versions=tuple((path[: at.start()], int(at[1])) for at in _VERSION.finditer(path)),
    )


def superseded(path: str, newest: Mapping[str, int]) -> int | None:
    """Returns the number of a `v<number>` folder in a path that has a newer one beside it."""
    for before, number in read_place(path).versions:
        if number < newest.get(before, 0):
            return number
    return None


def newest_versions(paths: frozenset[str]) -> dict[str, int]:
    """Returns the highest `v<number>` folder among paths, by what is before it."""
    newest: dict[str, int] = {}
    for path in paths:
        for before, number in read_place(path).versions:
            newest[before] = max(number, newest.get(before, 0))
    return newest
