"""What a search is about: a workspace, what lies beneath one of its folders, and filters."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lodestone.indexer.v1.search_service_pb2 import SearchFilter
from services.cli.trees import check_workspace_id, tree_path
from services.runtime.exits import ExitCode, StartError
from services.runtime.globs import beneath, whole_folder

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lodestone.indexer.v1.workspace_service_pb2 import Workspace
    from services.cli.indexer import Indexer


@dataclass(frozen=True, slots=True)
class Scope:
    """What is searched."""

    workspace: str
    folder: str = ""
    """Folder or file under the tree; empty is the tree."""

    @property
    def globs(self) -> tuple[str, ...]:
        """Globs of what lies beneath the folder; none for the tree."""
        return whole_folder(self.folder) if self.folder else ()


@dataclass(frozen=True, slots=True)
class Filters:
    """What the command line asks to search."""

    workspace: str = ""
    path: str = ""
    globs: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    symbols: tuple[str, ...] = ()
    changed_since: str = ""
    """A run's name, its id, or the first characters of its id."""

    def message(self, scope: Scope) -> SearchFilter:
        """Returns the filter of a request; globs are of what lies beneath the scope's folder."""
        globs = scope.globs
        if self.globs:
            globs = tuple(beneath(scope.folder, glob) for glob in self.globs)
        return SearchFilter(
            paths=globs,
            languages=self.languages,
            kinds=self.kinds,
            symbols=self.symbols,
            changed_since_index_run=self.changed_since,
        )

    def with_run(self, indexer: Indexer, scope: Scope) -> Filters:
        """Returns these with the name of their run. Raises StartError: there is none, or several.

        A name is looked up by the service, which tells what is wrong with it.
        """
        from services.cli.listing import find_run

        if not self.changed_since or "/" in self.changed_since:
            return self
        run = find_run(indexer, self.changed_since, scope.workspace)
        return replace(self, changed_since=run.name)


def find_scope(indexer: Indexer, filters: Filters, roots: str) -> Scope:
    """Returns the workspace that was named, or the one around the path or the current folder.

    Raises:
        StartError: there is none, or more than one, or the path lies not in the one that was named.
    """
    if filters.path and not roots:
        raise StartError(
            ExitCode.USAGE,
            "--path is of this machine, whose files an indexer elsewhere does not know: name a "
            "--workspace.",
        )
    path = existing_path(filters.path) if filters.path else None
    if filters.workspace:
        name = f"workspaces/{check_workspace_id(filters.workspace)}"
        return Scope(name) if path is None else _inside(indexer.get_workspace(name), path, roots)
    workspaces = indexer.list_workspaces()
    trees = [(each.name, each.tree.root, each.tree.directory) for each in workspaces]
    if path is not None:
        found = around(trees, path, roots)
        if found is None:
            folder = shlex.quote(str(path if path.is_dir() else path.parent))
            raise StartError(
                ExitCode.USAGE,
                f"{filters.path} is not indexed: run `lodestone index {folder}` first.",
            )
        return found
    found = around(trees, Path.cwd(), roots)
    if found is not None:
        return Scope(found.workspace)
    if len(workspaces) == 1:
        return Scope(workspaces[0].name)
    if not workspaces:
        raise StartError(ExitCode.FAILED, "Nothing is indexed: run `lodestone index PATH` first.")
    names = ", ".join(each.name.removeprefix("workspaces/") for each in workspaces)
    raise StartError(
        ExitCode.USAGE, f"Say what to search with --workspace or --path. There are: {names}"
    )


def other_workspaces(scope: Scope, also: Iterable[str]) -> list[str]:
    """Returns the names of more workspaces to search. Raises StartError, also of a part of one."""
    names = [f"workspaces/{check_workspace_id(name)}" for name in also]
    if names and scope.folder:
        raise StartError(
            ExitCode.USAGE,
            "--also goes with whole workspaces: name the first by --workspace, or its folder.",
        )
    return names


def existing_path(path: str) -> Path:
    """Returns a path, absolute and links resolved. Raises StartError when nothing is there."""
    # Of a loop of links Path.resolve makes another error, and of a NUL both.
    resolved = Path(os.path.realpath(path.partition("\0")[0]))
    if "\0" in path or not resolved.exists():
        raise StartError(ExitCode.USAGE, f"{path}: there is no such file or folder.")
    return resolved


def _inside(workspace: Workspace, path: Path, roots: str) -> Scope:
    """Returns a path as what is searched of a workspace. Raises StartError when it is not in it."""
    tree = workspace.tree
    found = around([(workspace.name, tree.root, tree.directory)], path, roots)
    if found is None:
        name = workspace.name.removeprefix("workspaces/")
        folder = tree_path(tree.root, tree.directory, roots)
        raise StartError(
            ExitCode.USAGE,
            f"{path} does not lie in {folder or 'the folder'}, which {name} is of: name a path in "
            "it, or leave out --workspace or --path.",
        )
    return found


def around(trees: Iterable[tuple[str, str, str]], path: Path, roots: str) -> Scope | None:
    """Returns the innermost workspace whose tree holds a path, and the path under that tree.

    Args:
        trees: name, root and directory of each workspace.
        path: absolute, links resolved.
        roots: `LODESTONE_IO_ROOTS` of the running io service.
    """
    best: tuple[int, Scope] | None = None
    for name, root, directory in trees:
        tree = tree_path(root, directory, roots)
        if tree is None or (tree != path and tree not in path.parents):
            continue
        inner = path.relative_to(tree).as_posix()
        if best is None or len(tree.parts) > best[0]:
            best = (len(tree.parts), Scope(name, "" if inner == "." else inner))
    return best[1] if best else None
