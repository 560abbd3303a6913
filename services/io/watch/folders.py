"""What is remembered of a watched tree: its folders, and the names of the files that are taken."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from services.io.ignore import IgnoreStack

Identity = tuple[int, int]
"""Device and inode."""

UNWATCHED = -1


class FileNames:
    """The names of a folder's files; packed into one string of bytes while nobody asks.

    A million files of a large tree cost some 20 bytes each instead of 100.
    """

    __slots__ = ("_names", "_packed")

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._names: set[str] | None = set(names)
        self._packed = b""

    def __contains__(self, name: str) -> bool:
        return name in self._opened()

    def __iter__(self) -> Iterator[str]:
        return iter(self._opened())

    def __len__(self) -> int:
        return len(self._opened())

    def add(self, name: str) -> None:
        """Adds a name."""
        self._opened().add(name)

    def discard(self, name: str) -> None:
        """Removes a name, if it is there."""
        self._opened().discard(name)

    def pack(self) -> None:
        """Makes it small, until the next question."""
        if self._names is not None:
            self._packed = "\0".join(self._names).encode()
            self._names = None

    def _opened(self) -> set[str]:
        if self._names is None:
            self._names = set(self._packed.decode().split("\0")) if self._packed else set()
            self._packed = b""
        return self._names


class Folder:
    """A folder of the tree that a scan would walk."""

    __slots__ = (
        "children", "identity", "ignore_key", "ignores", "is_link", "is_nested", "name", "names",
        "parent", "prefix", "wd",
    )  # fmt: skip

    def __init__(
        self, parent: Folder | None, name: str, ignores: IgnoreStack, *, is_link: bool = False
    ) -> None:
        self.parent = parent
        self.name = name
        self.prefix: str = "" if parent is None else f"{parent.prefix}{name}/"
        self.ignores = ignores
        self.ignore_key = 0
        self.is_link = is_link
        self.is_nested = False
        self.identity: Identity = (0, 0)
        self.wd = UNWATCHED
        self.names = FileNames()
        self.children: dict[str, Folder] = {}

    @property
    def path(self) -> str:
        """Its path under the tree; empty for the top."""
        return self.prefix[:-1]

    @property
    def depth(self) -> int:
        """How many folders lie above it."""
        return self.prefix.count("/")

    def with_all_below(self) -> Iterator[Folder]:
        """Yields the folder and every folder beneath it."""
        waiting = [self]
        while waiting:
            folder = waiting.pop()
            yield folder
            waiting.extend(folder.children.values())

    def detach(self) -> None:
        """Takes the folder out of the one above it."""
        if self.parent is not None and self.parent.children.get(self.name) is self:
            del self.parent.children[self.name]

    def move_to(self, parent: Folder, name: str) -> None:
        """Puts a detached folder beneath another, where nothing has that name."""
        assert name not in parent.children
        self.parent, self.name = parent, name
        parent.children[name] = self
        for folder in self.with_all_below():
            assert folder.parent is not None
            folder.prefix = f"{folder.parent.prefix}{folder.name}/"

    def find(self, prefix: str) -> Folder | None:
        """Returns the folder of a prefix such as `src/app/`, None when there is none."""
        folder: Folder | None = self
        for part in prefix.split("/")[:-1]:
            folder = folder.children.get(part) if folder is not None else None
        return folder


def split(path: str) -> tuple[str, str]:
    """Returns the prefix of a file's folder and its name."""
    folder, slash, name = path.rpartition("/")
    return folder + slash, name
