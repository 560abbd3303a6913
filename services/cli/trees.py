"""Which source tree a path means, and what its workspace is called."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from services.runtime.exits import ExitCode, StartError

if TYPE_CHECKING:
    from collections.abc import Iterable

_ID = re.compile(r"[a-z0-9-]{4,63}")
_SLUG_CHARACTERS = 54
_DIGEST_BYTES = 4


@dataclass(frozen=True, slots=True)
class SourceTree:
    """A folder of source code, as the io service knows it."""

    path: Path
    """Absolute, links resolved."""
    root: str
    """Resource name of the root, e.g. `roots/local`."""
    directory: str
    """Folder beneath the root."""

    @property
    def display_name(self) -> str:
        """What a person calls it."""
        return self.path.name or "/"

    @property
    def workspace_id(self) -> str:
        """A readable id that differs for each absolute path."""
        slug = re.sub(r"[^a-z0-9]+", "-", self.path.name.lower()).strip("-")[:_SLUG_CHARACTERS]
        digest = hashlib.blake2b(os.fsencode(self.path), digest_size=_DIGEST_BYTES).hexdigest()
        return f"{slug.strip('-') or 'tree'}-{digest}"


def resolve_tree(path: str, roots: str) -> SourceTree:
    """Returns the tree at a path of this machine.

    Args:
        path: folder, absolute or relative to the current one.
        roots: `LODESTONE_IO_ROOTS` of the running io service: `name=folder`, by commas.

    Raises:
        StartError: there is no such folder, or no root holds it.
    """
    resolved = Path(path).resolve()
    if not resolved.exists():
        raise StartError(ExitCode.USAGE, f"{path}: there is no such folder.")
    if not resolved.is_dir():
        raise StartError(ExitCode.USAGE, f"{path} is a file: name the folder that holds it.")
    for name, folder in parse_roots(roots):
        if resolved == folder or folder in resolved.parents:
            directory = resolved.relative_to(folder).as_posix()
            return SourceTree(resolved, f"roots/{name}", "" if directory == "." else directory)
    raise StartError(ExitCode.USAGE, f"{path} lies under none of LODESTONE_IO_ROOTS={roots}.")


def parse_roots(roots: str) -> list[tuple[str, Path]]:
    """Returns name and folder of each root, the deepest folder first."""
    pairs = (entry.partition("=") for entry in roots.split(",") if "=" in entry)
    found = [(name.strip(), Path(folder.strip()).resolve()) for name, _, folder in pairs]
    return sorted(found, key=lambda pair: -len(pair[1].parts))


def tree_path(root: str, directory: str, roots: str) -> Path | None:
    """Returns where a workspace's tree lies on this machine, when its root is known."""
    folders: Iterable[tuple[str, Path]] = parse_roots(roots)
    known = {f"roots/{name}": folder for name, folder in folders}
    return known[root] / directory if root in known else None


def check_workspace_id(identifier: str) -> str:
    """Returns the id, or raises StartError that says how ids look."""
    plain = identifier.removeprefix("workspaces/")
    if not _ID.fullmatch(plain):
        raise StartError(
            ExitCode.USAGE,
            f"{identifier} is no workspace name: 4 to 63 small letters, digits and hyphens.",
        )
    return plain
