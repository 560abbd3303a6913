"""What is known of names so far, and what must be looked up to know more.

Resolution is plain code over these facts. A fact that is not there is noted as missing, and taken
as empty; once all names are tried, the missing facts are fetched at once and the names tried again,
until none is missing. So a step takes a few statements, however many names it looks up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from services.indexer.graph.model import GraphNode, Import, SourceFile, Use
    from services.indexer.model import FileId, NodeId

Key = TypeVar("Key")
Value = TypeVar("Value")


class Known(Generic[Key, Value]):
    """Lists by key; those that were asked for and are not known are kept to be fetched."""

    def __init__(self) -> None:
        self._known: dict[Key, Sequence[Value]] = {}
        self._missing: set[Key] = set()
        self._cut: set[Key] = set()
        self.gave_part = False
        """Whether a list was given that was cut, since this was last set to false."""

    def get(self, key: Key) -> Sequence[Value]:
        """Returns a list, empty when it is not known yet."""
        found = self._known.get(key)
        if found is None:
            self._missing.add(key)
            return ()
        if key in self._cut:
            self.gave_part = True
        return found

    def take_missing(self, most: int) -> list[Key]:
        """Returns keys to fetch, in order, some of them now; the others are asked for again."""
        keys = sorted(self._missing)[:most]  # type: ignore[type-var]
        self._missing.clear()
        return keys

    def put(
        self, keys: Iterable[Key], found: Mapping[Key, Sequence[Value]], most: int | None = None
    ) -> None:
        """Notes what was fetched; a key without a list has an empty one, a long one is cut."""
        for key in keys:
            values = self._known[key] = found.get(key, ())
            if most is not None and len(values) > most:
                self._known[key] = values[:most]
                self._cut.add(key)


class Facts:
    """All facts of one request, of one state of the database."""

    def __init__(self) -> None:
        self.imports: Known[FileId, Import] = Known()
        self.in_file: Known[tuple[FileId, str], GraphNode] = Known()
        """Definitions of a name in a file, in order."""
        self.by_name: Known[str, GraphNode] = Known()
        """Definitions of a name in the workspace, by path, up to a limit."""
        self.by_stem: Known[str, SourceFile] = Known()
        """Files by the last part of the module that they are."""
        self.by_folder: Known[str, SourceFile] = Known()
        """Files by the name of their folder."""
        self.by_path: Known[str, SourceFile] = Known()
        self.bases: Known[NodeId, Use] = Known()
        """What a class inherits from."""
        self.first: Known[FileId, GraphNode] = Known()
        """The first node of a file, which stands for its module."""
        self.has_part_of_bases = False
        """Whether bases were left out: those of all classes are fetched in one list."""
        self.has_part_of_module = False
        """Whether a module had more files than are looked at, since `begin`."""

    def begin(self) -> None:
        """Forgets which lists were given that were cut: names are tried from the start."""
        self.has_part_of_module = False
        for known in self._may_be_cut():
            known.gave_part = False

    @property
    def gave_part(self) -> bool:
        """Whether what names mean, since `begin`, was read from a part of what there is."""
        gave_part = any(known.gave_part for known in self._may_be_cut())
        return self.has_part_of_bases or self.has_part_of_module or gave_part

    def _may_be_cut(self) -> tuple[Known[Any, Any], ...]:
        return self.imports, self.by_name, self.by_stem, self.by_folder
