"""What the tools need of the machine that they run on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from services.runtime.globs import beneath, escape_glob, whole_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.client import Lodestone, Workspace


class BackendError(Exception):
    """Something is wrong that the message tells, with what to do."""


@dataclass(frozen=True, slots=True)
class Place:
    """A workspace, or what lies beneath one of its folders."""

    workspace: str
    """Resource name."""
    prefix: str = ""
    """Folder or file under the tree, without `/` at its end; empty is the tree."""

    def globs(self, paths: Sequence[str]) -> tuple[str, ...]:
        """Returns globs of what a tool searches here, and of nothing else.

        Args:
            paths: globs as a tool was given them, of paths under the folder, or of paths under the
                tree that lead into the folder, as hits tell them; none takes all.
        """
        if not self.prefix:
            return tuple(paths)
        if not paths:
            return whole_folder(self.prefix)
        return tuple(dict.fromkeys(glob for path in paths for glob in self._within(path)))

    def _within(self, path: str) -> tuple[str, ...]:
        """Returns both readings of a glob; which one is meant only a caller knows."""
        under_folder, plain = beneath(self.prefix, path), path.removeprefix("/")
        for prefix in (self.prefix, escape_glob(self.prefix)):
            if plain == prefix:
                return under_folder, *whole_folder(self.prefix)
            if plain.startswith(f"{prefix}/"):
                return under_folder, beneath(self.prefix, plain[len(prefix) :])
        return (under_folder,)


@dataclass(frozen=True, slots=True)
class NewWorkspace:
    """A folder that is no workspace yet, as one."""

    workspace: str
    root: str
    directory: str
    display_name: str


class Backend(Protocol):
    """Where the services are, and which folders they know."""

    async def client(self) -> Lodestone:
        """Returns a client of services that run; starts them when they do not.

        Raises:
            BackendError: they do not start.
        """

    def place_of(self, folder: str, workspaces: Sequence[Workspace]) -> Place | None:
        """Returns the innermost workspace whose tree holds a folder, or None.

        Raises:
            BackendError: there is no such folder.
        """

    def folder_of(self, workspace: Workspace) -> str:
        """Returns where a workspace's tree lies on this machine; empty when that is not known."""

    def new_workspace(self, folder: str) -> NewWorkspace:
        """Returns what a folder would be as a workspace.

        Raises:
            BackendError: it is no folder, or none that this server may make one of.
        """

    async def close(self) -> None:
        """Ends all calls."""
