"""The folders that this server may touch, by name."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from services.io.model import Root, SymlinkPolicy
from services.io.paths import Tree
from services.runtime.errors import NotFoundError, PageTokenError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PREFIX = "roots/"
_ID = re.compile(r"[a-z0-9-]{1,63}")


class Roots:
    """The roots of one server."""

    def __init__(self, roots: Iterable[Root]) -> None:
        self._roots = {root.id: root for root in sorted(roots, key=lambda root: root.id)}

    def get(self, name: str) -> Root:
        """Returns the root of a resource name.

        Raises:
            NotFoundError: there is none.
        """
        root = self._roots.get(name.removeprefix(PREFIX))
        if root is None:
            raise NotFoundError("There is no such root.", metadata={"resource": name})
        return root

    def page(self, size: int, after: str) -> tuple[Sequence[Root], str]:
        """Returns up to `size` roots by id, and the token of the next page.

        Raises:
            PageTokenError: the token is not of this list.
        """
        if after and not _ID.fullmatch(after):
            raise PageTokenError("The page token is not of this list.")
        rest = [root for root in self._roots.values() if root.id > after]
        page = rest[:size]
        return page, page[-1].id if len(rest) > size else ""

    def with_first(self, root: Root) -> tuple[Root, ...]:
        """Returns all roots, one of them first."""
        return (root, *(other for other in self._roots.values() if other.id != root.id))

    def open_tree(self, name: str, directory: str) -> Tree:
        """Opens a folder beneath a root; the caller closes it.

        Raises:
            NotFoundError: there is no such root.
            FileError: there is no such folder, or it may not be opened.
        """
        root = self.get(name)
        return Tree(root, directory, self.with_first(root))


def parse_roots(text: str, policy: SymlinkPolicy, *, read_only: bool = True) -> list[Root]:
    """Returns the roots of a setting `name=/folder,other=/folder`, with their links resolved.

    Raises:
        ValueError: an entry is not of that form, or a name comes twice.
    """
    roots: dict[str, Root] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, equals, path = entry.partition("=")
        if not equals or not _ID.fullmatch(name) or not path.startswith("/"):
            raise ValueError("a root is written name=/absolute/path, the name in a-z, 0-9 and -")
        if name in roots:
            raise ValueError(f"the root {name} is named twice")
        roots[name] = Root(name, os.path.realpath(path), policy, read_only)
    return list(roots.values())
