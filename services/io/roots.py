"""The folders that this server may touch, by name."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from services.io import metrics
from services.io.beneath import WouldWaitError
from services.io.errors import StateFolderError
from services.io.model import ROOT_ID, Root, SymlinkPolicy
from services.io.paths import Tree, resolved_path
from services.io.root_rules import RootRules
from services.runtime.errors import (
    AlreadyExistsError,
    NotFoundError,
    PageTokenError,
    StateConflictError,
)
from services.runtime.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from services.io.root_file import RootFile

PREFIX = "roots/"
REFRESH_SECONDS = 1.0
"""Longest time that a root which another replica removed is still served here."""


class Roots:
    """The roots of one server: those of its settings, and those that callers added.

    For any thread. What was added is kept in a file that replicas share, or without one in memory.
    The file is looked at when a name is not known, and else every `REFRESH_SECONDS` at most; so
    methods may block for a moment, and belong into a thread.
    """

    def __init__(
        self,
        roots: Iterable[Root],
        rules: RootRules | None = None,
        file: RootFile | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rules = rules or RootRules()
        self._configured = {root.id: root for root in roots}
        self._file = file
        self._clock = clock
        self._lock = threading.Lock()
        self._added: dict[str, Root] = {}
        self._by_id: dict[str, Root] = {}  # replaced whole, so that readers need no lock
        self._next_look = clock() + REFRESH_SECONDS
        self._show({})

    def load(self) -> None:
        """Reads what was added before; to be called once, before the first call.

        Raises:
            StateFolderError: the file cannot be read.
        """
        with self._lock:
            self._read()

    def get(self, name: str, *, waits: bool = True) -> Root:
        """Returns the root of a resource name.

        Raises:
            NotFoundError: there is none.
            WouldWaitError: with `waits` false alone: it is time to look at the file.
        """
        root_id = name.removeprefix(PREFIX)
        is_unknown = root_id not in self._by_id
        if not waits and self._is_due(at_once=is_unknown):
            raise WouldWaitError
        self._look(at_once=is_unknown)
        root = self._by_id.get(root_id)
        if root is None:
            raise NotFoundError("There is no such root.", metadata={"resource": name})
        return root

    def page(self, size: int, after: str) -> tuple[Sequence[Root], str]:
        """Returns up to `size` roots by id, and the token of the next page.

        Raises:
            PageTokenError: the token is not of this list.
        """
        if after and not ROOT_ID.fullmatch(after):
            raise PageTokenError("The page token is not of this list.")
        self._look(at_once=True)
        rest = [root for root in self._by_id.values() if root.id > after]
        page = rest[:size]
        return page, page[-1].id if len(rest) > size else ""

    def with_first(self, root: Root) -> tuple[Root, ...]:
        """Returns all roots, one of them first."""
        return (root, *(other for other in self._by_id.values() if other.id != root.id))

    def open_tree(self, name: str, directory: str, *, waits: bool = True) -> Tree:
        """Opens a folder beneath a root; the caller closes it.

        Raises:
            NotFoundError: there is no such root.
            FileError: there is no such folder, or it may not be opened.
            WouldWaitError: with `waits` false alone.
        """
        return self.tree_of_call(name, directory)(waits=waits)

    def tree_of_call(self, name: str, directory: str) -> TreeOfCall:
        """Returns what opens a folder beneath a root for one call, to its end."""
        return TreeOfCall(self, name, directory)

    def create(self, root: Root) -> Root:
        """Adds a root and returns it, its folder resolved; once more has no effect. Blocks.

        Raises:
            AlreadyExistsError: there is one of this id that is not the same.
            ForbiddenError, InvalidRequestError, OverloadedError, FileError: see `RootRules`.
            StateFolderError: it cannot be kept; nothing changed.
        """
        root = replace(root, path=self.rules.resolved(root.path))

        def add(added: dict[str, Root]) -> None:
            known = self._configured.get(root.id) or added.get(root.id)
            if known not in {None, root}:
                raise AlreadyExistsError(
                    "There is a root of this name with another folder or other rules.",
                    metadata={"resource": PREFIX + root.id},
                )
            if known is None:
                self.rules.check_room(len(self._configured) + len(added))
                added[root.id] = root

        self._change(add)
        return root

    def delete(self, name: str) -> None:
        """Removes an added root: calls that name it fail from now on. Blocks.

        Raises:
            NotFoundError: there is none.
            ForbiddenError: callers may not change roots.
            StateConflictError: it is one of the settings.
            StateFolderError: it cannot be kept; nothing changed.
        """
        self.rules.check_may_change()
        root_id = name.removeprefix(PREFIX)
        if root_id in self._configured:
            raise StateConflictError(
                "A root of LODESTONE_IO_ROOTS is removed there.",
                metadata={"state": "configured", "allowed": "added"},
            )

        def remove(added: dict[str, Root]) -> None:
            if added.pop(root_id, None) is None:
                raise NotFoundError("There is no such root.", metadata={"resource": name})

        self._change(remove)

    def _change(self, change: Callable[[dict[str, Root]], None]) -> None:
        """Changes the newest list, on the disk first: what a caller was told outlasts a crash."""
        with self._lock:
            if self._file is None:
                added = dict(self._added)
                change(added)
            else:
                with self._file.locked():
                    self._read()
                    added = dict(self._added)
                    change(added)
                    if added != self._added:
                        self._file.write(list(added.values()))
            self._show(added)

    def _is_due(self, *, at_once: bool) -> bool:
        return self._file is not None and (at_once or self._clock() >= self._next_look)

    def _look(self, *, at_once: bool) -> None:
        """Takes up what other replicas changed; a file that cannot be read changes nothing."""
        if self._file is None or not self._is_due(at_once=at_once):
            return
        if not self._lock.acquire(blocking=at_once):
            return  # whoever holds it is looking, or knows better
        try:
            self._next_look = self._clock() + REFRESH_SECONDS
            if self._file.has_changed():
                self._read()
        except StateFolderError:
            get_logger().warning("roots_not_refreshed")
        finally:
            self._lock.release()

    def _read(self) -> None:
        found = None if self._file is None else self._file.read()
        if found is not None:
            self._show({root.id: root for root in found})

    def _show(self, added: dict[str, Root]) -> None:
        # A root of the settings goes before an added one of its name.
        both = added | self._configured
        self._added = added
        self._by_id = {root_id: both[root_id] for root_id in sorted(both)}
        metrics.ROOTS.labels("configured").set(len(self._configured))
        metrics.ROOTS.labels("added").set(len(both) - len(self._configured))


class TreeOfCall:
    """Opens the tree of one call, as often as the call has need of it; for any thread.

    The root is looked up the first time: a call in flight finishes though its root is removed.
    """

    def __init__(self, roots: Roots, name: str, directory: str) -> None:
        self._roots = roots
        self._name = name
        self._directory = directory
        self._held: tuple[Root, ...] = ()

    def __call__(self, *, waits: bool = True) -> Tree:
        """Opens the tree; the caller closes it.

        Raises:
            NotFoundError: there is no such root.
            FileError: there is no such folder, or it may not be opened.
            WouldWaitError: with `waits` false alone.
        """
        root = self.root(waits=waits)
        return Tree(root, self._directory, self._held, waits=waits)

    def root(self, *, waits: bool = True) -> Root:
        """Returns the root of the tree.

        Raises:
            NotFoundError: there is none.
            WouldWaitError: with `waits` false alone.
        """
        if not self._held:
            self._held = self._roots.with_first(self._roots.get(self._name, waits=waits))
        return self._held[0]


def parse_roots(text: str, policy: SymlinkPolicy, *, read_only: bool = True) -> list[Root]:
    """Returns the roots of a setting `name=/folder,other=/folder`, with their links resolved.

    Raises:
        ValueError: an entry is not of that form, or a name comes twice.
    """
    roots: dict[str, Root] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, equals, path = entry.partition("=")
        if not equals or not ROOT_ID.fullmatch(name) or not path.startswith("/"):
            raise ValueError("a root is written name=/absolute/path, the name in a-z, 0-9 and -")
        if name in roots:
            raise ValueError(f"the root {name} is named twice")
        roots[name] = Root(name, resolved_path(path), policy, read_only)
    return list(roots.values())
