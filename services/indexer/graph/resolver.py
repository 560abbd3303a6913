"""What names mean, by what is written alone: no types are known.

The first of these that finds a definition counts: the class or file itself, what the file imports,
files of the same folder where the language shows them, and the workspace. A name that the file
imports from elsewhere means nothing here, whatever else has that name.
"""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING

from services.indexer.graph.imports import Imports
from services.indexer.graph.model import (
    MAX_GUESSES,
    GraphNode,
    Import,
    Resolution,
    SourceFile,
    Target,
    Use,
)
from services.indexer.graph.modules import above, folder_of
from services.indexer.model import NodeKind, ReferenceKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from services.indexer.graph.facts import Facts

MAX_BASES = 4
"""Classes between a class and the one whose method is looked for."""

_SELF = frozenset({"self", "this", "cls", "Self", "static", "super", "parent", "base"})
_ABOVE = frozenset({"super", "parent", "base"})
_SCOPED = frozenset({"python", "javascript", "typescript", "tsx", "rust", "go"})
"""Languages in which a plain name is of the file, or of its imports, or of the language itself."""
_NEIGHBOURS = frozenset(
    {"go", "java", "kotlin", "scala", "c-sharp", "swift", "php", "c", "cpp", "bash", "ruby"}
)
"""Languages in which files of one folder, or of one namespace, see each other's names."""
_IMPLICIT_SELF = frozenset({"java", "kotlin", "scala", "c-sharp", "cpp", "swift", "ruby"})
"""Languages in which a plain name may be a method of the class around it."""
_UNKNOWN = "?"
_SUPPLIED = frozenset({"std", "core", "alloc"})
"""Crates that come with Rust."""


class Resolver:
    """Looks names up in facts; what is missing there is noted and taken as empty."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._imports = Imports(facts)

    def resolve(self, use: Use) -> list[Target]:
        """Returns the nodes that a name means, surest first; none when it is of elsewhere."""
        if use.kind is ReferenceKind.IMPORT:
            return self._imported(use)
        if not use.qualifier:
            return self._plain(use)
        if use.qualifier in _SELF and use.kind is ReferenceKind.CALL:
            return self._of_self(use) or self._by_path(use)
        return self._qualified(use)

    def _imported(self, use: Use) -> list[Target]:
        file, language = _file_of(use.owner), use.owner.language
        item = Import(use.qualifier, use.name, use.alias)
        found: list[GraphNode] = []
        if use.name not in {"", "*"}:
            found = self._imports.definitions(item, file, language, use.name)
            if not found:  # one file for each class, as in Java
                whole = item._replace(module=f"{item.module}/{item.name}")
                found = self._imports.definitions(whole, file, language, use.name, 0)
        found = found or self._imports.modules(item, file, language)
        return _told(found, Resolution.IMPORTED)

    def _plain(self, use: Use) -> list[Target]:
        owner, language = use.owner, use.owner.language
        if found := self._in_own_file(use):
            return _told(found, Resolution.LOCAL)
        file = _file_of(owner)
        if named := self._imports.of_name(file, language, use.name):
            return self._through(named, file, language, "")
        for item in self._imports.of_all(file, language):
            if found := self._imports.definitions(item, file, language, use.name):
                return _told(found, Resolution.IMPORTED)
        if language in _IMPLICIT_SELF and (found := self._inherited(owner, use.name)):
            return _told(found, Resolution.LOCAL)
        if language in _SCOPED and language not in _NEIGHBOURS:
            return []
        candidates = self._candidates(use, methods=language in _IMPLICIT_SELF)
        if language in _NEIGHBOURS:
            near = [node for node in candidates if _are_neighbours(node, owner)]
            if len(near) == 1:
                return _told(near, Resolution.NEIGHBOUR)
        return [] if language in _SCOPED else _guessed(candidates, owner)

    def _in_own_file(self, use: Use) -> list[GraphNode]:
        """Returns what a plain name means in its file: what is nearest around, else at the top."""
        owner = use.owner
        found = [
            node
            for node in self._facts.in_file.get((owner.file_id, use.name))
            if node.kind is not NodeKind.METHOD or owner.language in _IMPLICIT_SELF
        ]
        if use.kind is ReferenceKind.INHERIT:
            found = [node for node in found if node.id != owner.id]
        scope = owner.qualified_name
        while found:
            inside = [node for node in found if node.scope == scope]
            if inside or not scope:
                return inside or found
            scope = scope.rpartition(".")[0]
        return []

    def _of_self(self, use: Use) -> list[Target]:
        owner = use.owner
        if use.qualifier not in _ABOVE:
            scope = owner.scope if owner.kind is NodeKind.METHOD else owner.qualified_name
            own = self._facts.in_file.get((owner.file_id, use.name))
            if found := [node for node in own if node.scope == scope]:
                return _told(found, Resolution.LOCAL)
        if found := self._inherited(owner, use.name):
            return _told(found, Resolution.LOCAL)
        return [] if use.qualifier in _ABOVE else self._on_anything(use)

    def _inherited(self, owner: GraphNode, name: str) -> list[GraphNode]:
        """Returns methods of a name in the bases of the class around a node, nearest first."""
        classes = self._classes_around(owner)
        seen: set[int] = set()
        for _ in range(MAX_BASES):
            bases = [target.node for item in classes for target in self._bases_of(item)]
            classes = [base for base in dict.fromkeys(bases) if base.id not in seen]
            seen.update(base.id for base in classes)
            for base in classes:
                own = self._facts.in_file.get((base.file_id, name))
                if found := [node for node in own if node.scope == base.qualified_name]:
                    return found
        return []

    def _classes_around(self, owner: GraphNode) -> list[GraphNode]:
        """Returns the innermost class around a node; of some languages the several parts of it."""
        scope = owner.qualified_name
        while scope:
            scope, _, _ = scope.rpartition(".")
            found = [
                node
                for node in self._facts.in_file.get((owner.file_id, scope.rpartition(".")[2]))
                if node.kind is NodeKind.CLASS and node.qualified_name == scope
            ]
            if found:
                return found
        return []

    def _bases_of(self, node: GraphNode) -> Iterable[Target]:
        for base in self._facts.bases.get(node.id):
            sure = [item for item in self.resolve(base) if item.resolution < Resolution.AMBIGUOUS]
            yield from (item for item in sure if item.node.kind is NodeKind.CLASS)

    def _qualified(self, use: Use) -> list[Target]:
        owner, language = use.owner, use.owner.language
        if use.qualifier == _UNKNOWN:
            return self._on_anything(use)
        file = _file_of(owner)
        for head, rest in _heads(use.qualifier):
            if named := self._imports.of_name(file, language, head):
                return self._through(named, file, language, f"{rest}.{use.name}".lstrip("."))
        full = f"{use.qualifier.rpartition('.')[2]}.{use.name}"
        own = self._facts.in_file.get((owner.file_id, use.name))
        if found := [node for node in own if _ends_with(node, full)]:
            return _told(found, Resolution.LOCAL)
        if targets := self._by_path(use):
            return targets
        if use.qualifier.partition(".")[0] in _SUPPLIED and language == "rust":
            return []
        if found := [node for node in self._candidates(use) if _ends_with(node, full)]:
            return _guessed(found, owner)
        return self._on_anything(use)

    def _by_path(self, use: Use) -> list[Target]:
        """Returns what a path of Rust means, from its crate, a module around it, or one below."""
        owner = use.owner
        if owner.language != "rust":
            return []
        parts = use.qualifier.split(".")
        supers = sum(1 for _ in takewhile("super".__eq__, parts))
        inside = self._modules_around(owner)
        if parts == ["self"] or (parts == ["super"] * supers and supers <= inside):
            return _told(self._in_own_file(use), Resolution.LOCAL)
        module = above(owner.path, supers - inside) if supers > inside else ""
        rest = parts[max(supers, parts[0] in {"crate", "self"}) :]
        start = Import(module, "", "")
        return self._through([start], _file_of(owner), "rust", ".".join([*rest, use.name]))

    def _modules_around(self, owner: GraphNode) -> int:
        """Returns in how many modules of its file a node is: no class, and yet a scope."""
        parts = owner.scope.split(".") if owner.scope else []
        for depth, part in enumerate(parts):
            scope = ".".join(parts[: depth + 1])
            named = self._facts.in_file.get((owner.file_id, part))
            if any(node.kind is NodeKind.CLASS and node.qualified_name == scope for node in named):
                return depth
        return len(parts)

    def _through(
        self, named: Sequence[Import], file: SourceFile, language: str, rest: str
    ) -> list[Target]:
        """Returns what a name means beneath imports: of a module, or of a class in one."""
        for item in named:
            parts = [part for part in (item.name, *rest.split(".")) if part]
            parts = parts or [item.alias or "default"]
            for module, name in _readings(item.module, parts):
                inner = Import(module, name.partition(".")[0], "")
                if found := self._imports.definitions(inner, file, language, name):
                    return _told(found, Resolution.IMPORTED)
            if found := self._inherited_by_name(item, file, language, ".".join(parts)):
                return _told(found, Resolution.IMPORTED)
        return []

    def _inherited_by_name(
        self, item: Import, file: SourceFile, language: str, name: str
    ) -> list[GraphNode]:
        """Returns a method that an imported class has from a base."""
        holder, _, method = name.rpartition(".")
        if not holder:
            return []
        for node in self._imports.definitions(item, file, language, holder):
            if node.kind is NodeKind.CLASS:
                inside = node._replace(qualified_name=f"{node.qualified_name}.{method}")
                if found := self._inherited(inside, method):
                    return found
        return []

    def _on_anything(self, use: Use) -> list[Target]:
        """Returns methods of a name, whatever they are of."""
        if use.kind is not ReferenceKind.CALL:
            return []
        return _guessed(self._candidates(use, methods=True, functions=False), use.owner)

    def _candidates(
        self, use: Use, *, methods: bool = True, functions: bool = True
    ) -> list[GraphNode]:
        """Returns the workspace's definitions of a name, in languages that meet the file's."""
        wanted = {NodeKind.CLASS}
        if use.kind is ReferenceKind.CALL:
            wanted |= {NodeKind.METHOD} if methods else set()
            wanted = wanted | {NodeKind.FUNCTION} if functions else {NodeKind.METHOD}
        family = _family(use.owner.language)
        return [
            node
            for node in self._facts.by_name.get(use.name)
            if node.kind in wanted and _family(node.language) == family
        ]


_FAMILIES = {
    "javascript": "script",
    "typescript": "script",
    "tsx": "script",
    "c": "c",
    "cpp": "c",
    "java": "jvm",
    "kotlin": "jvm",
    "scala": "jvm",
}


def _family(language: str) -> str:
    """Returns what languages have in common that call each other by name."""
    return _FAMILIES.get(language, language)


def _readings(module: str, parts: Sequence[str]) -> Iterable[tuple[str, str]]:
    """Yields what a dotted name beneath a module may be: a module, and a name in it.

    The last is a file of the name's own in it, as in Java.
    """
    for count in range(len(parts)):
        yield "/".join(filter(None, (module, *parts[:count]))), ".".join(parts[count:])
    yield f"{module}/{parts[0]}", ".".join(parts)


def _heads(qualifier: str) -> Iterable[tuple[str, str]]:
    """Yields the beginnings of a dotted name with what is left of it, longest first."""
    parts = qualifier.split(".")
    for count in range(len(parts), 0, -1):
        yield ".".join(parts[:count]), ".".join(parts[count:])


def _file_of(node: GraphNode) -> SourceFile:
    return SourceFile(node.file_id, node.path)


def _ends_with(node: GraphNode, name: str) -> bool:
    return node.qualified_name == name or node.qualified_name.endswith(f".{name}")


def _are_neighbours(first: GraphNode, second: GraphNode) -> bool:
    return folder_of(first.path) == folder_of(second.path)


def _told(nodes: Iterable[GraphNode], resolution: Resolution) -> list[Target]:
    """Returns targets; several in other places than one file are not sure."""
    found = list(dict.fromkeys(nodes))
    return [Target(node, resolution) for node in found[:MAX_GUESSES]]


def _guessed(nodes: Sequence[GraphNode], owner: GraphNode) -> list[Target]:
    """Returns the one definition, or the nearest of several as guesses."""
    if len(nodes) == 1:
        return [Target(nodes[0], Resolution.UNIQUE)]
    nearest = sorted(
        nodes,
        key=lambda node: (
            node.file_id != owner.file_id,
            not _are_neighbours(node, owner),
            node.path,
            node.ordinal,
        ),
    )
    return [Target(node, Resolution.AMBIGUOUS) for node in nearest[:MAX_GUESSES]]
