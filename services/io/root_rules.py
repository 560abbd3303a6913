"""Which folders callers may add as roots."""

from __future__ import annotations

import os
from dataclasses import dataclass

from services.io.paths import is_beneath, open_root, resolved_path
from services.runtime.errors import ForbiddenError, InvalidRequestError, OverloadedError

DEFAULT_MAX_ROOTS = 1000


@dataclass(frozen=True, slots=True)
class RootRules:
    """What callers may add; nothing unless a folder is named to add beneath."""

    parents: tuple[str, ...] = ()
    """Folders, free of links, in or beneath which roots may be added."""

    max_roots: int = DEFAULT_MAX_ROOTS
    """Most roots that there may be, those of the settings among them."""

    @property
    def may_change(self) -> bool:
        """Whether callers may change roots, and so are told where they lie."""
        return bool(self.parents)

    def check_may_change(self) -> None:
        """Raises ForbiddenError unless callers may change roots."""
        if not self.may_change:
            raise ForbiddenError(
                "Roots are not changed by calls here: LODESTONE_IO_ROOT_PARENTS names no folder."
            )

    def check_room(self, count: int) -> None:
        """Raises OverloadedError when `count` roots are as many as there may be."""
        if count >= self.max_roots:
            raise OverloadedError(
                "There are as many roots as there may be; remove one first.",
                metadata={"limit": str(self.max_roots)},
            )

    def resolved(self, path: str) -> str:
        """Returns the folder free of links. Blocks.

        Raises:
            ForbiddenError: it lies beneath none of the parents, whether it exists or not.
            InvalidRequestError: it is no absolute path, or the whole file system.
            FileError: it does not exist, is no folder, or may not be opened.
        """
        self.check_may_change()
        if not path.startswith("/") or "\0" in path:
            raise InvalidRequestError(
                "The folder must be an absolute path.",
                metadata={"root.path": "must be an absolute path without NUL"},
            )
        real = resolved_path(path)
        if real == "/":
            raise InvalidRequestError(
                "The whole file system is a root by LODESTONE_IO_ROOTS alone.",
                metadata={"root.path": "must not be the root of the file system"},
            )
        if not any(is_beneath(real, parent) for parent in self.parents):
            raise ForbiddenError(
                "The folder lies beneath none of LODESTONE_IO_ROOT_PARENTS.",
                metadata={"path": path},
            )
        os.close(open_root(real, path))
        return real
