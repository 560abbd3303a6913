"""What imports mean: the files of modules, and the definitions in them, through re-exports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.indexer.graph import modules

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from services.indexer.graph.facts import Facts
    from services.indexer.graph.model import GraphNode, Import, SourceFile

MAX_REEXPORTS = 3
"""Files that a name is followed through until its definition."""
MAX_FILES = 50
"""Most files of one module, as in a package of Go."""

_OPEN = frozenset({"c", "cpp", "ruby", "bash", "php", "c-sharp", "swift"})
"""Languages in which an imported file shows its names without more."""
_PACKAGE_FILE = "__init__.py"


class Imports:
    """Looks imports up, for files of one language each."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    def of_name(self, file: SourceFile, language: str, name: str) -> list[Import]:
        """Returns the imports that give a name to a file; none for all names."""
        return [
            item for item in self._facts.imports.get(file.id) if local_name(item, language) == name
        ]

    def of_all(self, file: SourceFile, language: str) -> list[Import]:
        """Returns the imports that give a file all names of a module."""
        return [
            item
            for item in self._facts.imports.get(file.id)
            if item.name == "*" or (not item.name and not item.alias and language in _OPEN)
        ]

    def definitions(
        self, item: Import, file: SourceFile, language: str, name: str, left: int = MAX_REEXPORTS
    ) -> list[GraphNode]:
        """Returns what an import means as definitions of `name`, in files of the module.

        Args:
            item: the import.
            file: the one that imports.
            language: that file's.
            name: the name in the module; that of the import itself, or one of a whole module.
            left: re-exports to follow.
        """
        files = self.files(item.module, file, language)
        found = self._at_top(files, name)
        if not found and left:
            for other in files[:MAX_REEXPORTS]:
                found = self._reexported(other, language, name, left - 1)
                if found:
                    break
        return found

    def modules(self, item: Import, file: SourceFile, language: str) -> list[GraphNode]:
        """Returns the first nodes of the files that an import means as a module."""
        name = "" if item.name == "*" else item.name
        path = "/".join(filter(None, (item.module, name)))
        return [
            node
            for other in self.files(path, file, language)
            for node in self._facts.first.get(other.id)
        ]

    def files(self, module: str, file: SourceFile, language: str) -> list[SourceFile]:
        """Returns the files that a module means: one, or those of a folder."""
        if language == "rust" and (found := self._crate(module, file)):
            return found
        if modules.is_elsewhere(module, language):
            return []
        place = modules.absolute(module, file.path) if modules.is_relative(module) else module
        if place is None:
            return []
        stem = modules.stem_of(place)
        found = modules.choose_files(module, file.path, language, self._named((stem, place)))
        if language == "python":
            return self._few([item for item in found if self._starts_at_a_root(module, item)])
        if not found:
            folder = place.rpartition("/")[2]
            found = modules.choose_in_folder(
                module, file.path, language, self._facts.by_folder.get(folder)
            )
        return self._few(found)

    def _crate(self, module: str, file: SourceFile) -> list[SourceFile]:
        """Returns the files that a crate of Rust begins with, where a module is that of them."""
        for folder in modules.crate_folders(module, file.path):
            paths = [f"{folder}/{name}".lstrip("/") for name in sorted(modules.CRATE_FILES)]
            if found := [file for path in paths for file in self._facts.by_path.get(path)]:
                return found
        return []

    def _few(self, files: list[SourceFile]) -> list[SourceFile]:
        """Returns as many files as are looked at."""
        self._facts.has_part_of_module |= len(files) > MAX_FILES
        return files[:MAX_FILES]

    def _named(self, names: Iterable[str]) -> list[SourceFile]:
        """Returns the files whose own name is the last part of one of these, each once."""
        stems = dict.fromkeys(name.rpartition("/")[2] for name in names)
        return list(dict.fromkeys(file for stem in stems for file in self._facts.by_stem.get(stem)))

    def _starts_at_a_root(self, module: str, file: SourceFile) -> bool:
        """Tells whether a module is named from where names begin: `json` is not `package.json`."""
        if modules.is_relative(module):
            return True
        root = modules.root_of(module, file.path)
        return not self._facts.by_path.get(f"{root}/{_PACKAGE_FILE}".lstrip("/"))

    def _at_top(self, files: Sequence[SourceFile], name: str) -> list[GraphNode]:
        return [
            node
            for file in files
            for node in self._facts.in_file.get((file.id, name.rpartition(".")[2]))
            if node.qualified_name == name or node.qualified_name.endswith(f".{name}")
        ]

    def _reexported(self, file: SourceFile, language: str, name: str, left: int) -> list[GraphNode]:
        head, _, rest = name.partition(".")
        for item in self.of_name(file, language, head):
            inner = ".".join(filter(None, (item.name or head, rest)))
            if found := self.definitions(item, file, language, inner, left):
                return found
        for item in self.of_all(file, language):
            if found := self.definitions(item, file, language, name, left):
                return found
        return []


def local_name(item: Import, language: str) -> str:
    """Returns the name that an import has in its file, empty for none or all."""
    if item.alias:
        return "" if item.alias in {"_", "."} else item.alias
    if item.name:
        return "" if item.name == "*" else item.name
    if language == "python":
        return item.module.replace("/", ".")
    return "" if language in _OPEN else modules.stem_of(item.module)
