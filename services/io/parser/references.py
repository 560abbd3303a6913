"""Collects the names that a file calls, inherits from and imports, with the node they stand in."""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache
from itertools import islice, takewhile
from operator import itemgetter
from typing import TYPE_CHECKING

from tree_sitter import QueryCursor

from services.io.model import Reference, ReferenceKind
from services.io.parser.declarations import plain_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tree_sitter import Node as Syntax
    from tree_sitter import Query

    from services.io.model import Node
    from services.io.parser.reference_rules import ReferenceRules

MAX_PER_NODE = 256
"""Most different names that are kept of one node."""
MAX_PER_FILE = 20_000
"""Most names that are looked at in one file."""
_MAX_BYTES = 200
"""Longer names, receivers and modules are no names."""
_CHUNK_BYTES = 1 << 16
_MATCH_LIMIT = 1024
_MAX_DEPTH = 60_000
"""Deeper syntax is not searched: tree-sitter counts depth by 16 bits, and beyond them keeps matches
in work that it should drop, all of which it looks at again at each node."""
_PLAIN = re.compile(r"[\w.$@?!~]+")
_SUPER = re.compile(r"super\(.*\)", re.DOTALL)
_KINDS = re.compile(r"^(?:type|typeof|function|const)\s+(?=\w)")
"""What may stand before a name in a list, and is no part of it: `import { type T } from "./t"`."""
_EXPRESSION = "?"
_MAX_LISTS = 8
"""Lists of names within lists that are looked into."""
_CACHED_TEXTS = 4096
"""Texts are short, and files of one project call the same names."""
_NAMES = ("name", "path", "key")
_ALIASES = ("alias", "value")
_Key = tuple[int, ReferenceKind, str, str, str]
"""A reference without its line."""
if TYPE_CHECKING:
    _Match = tuple[int, Syntax, Mapping[str, list[Syntax]]]


def collect_references(
    data: bytes, root: Syntax, query: Query, rules: ReferenceRules, nodes: Sequence[Node]
) -> tuple[Reference, ...]:
    """Returns what the nodes of a file refer to, each name once a node, in order of the nodes.

    Args:
        data: the file's bytes.
        root: its syntax tree.
        query: the compiled query of `rules`.
        rules: those of the file's language.
        nodes: the file's nodes, in order of their first byte.
    """
    if not nodes:
        return ()
    owners, kept = _Owners(nodes), _Kept()
    for position, anchor, captures in islice(_matches(root, query), MAX_PER_FILE):
        owner = owners.of(position)
        if "module" in captures:
            # An import counts for its file, also where it stands in no node.
            for key in _imports(captures, rules, owner or 1):
                kept.add(key, anchor)
        elif owner:
            key = _use(data, captures, anchor, owner)
            if key[2]:
                kept.add(key, anchor)
    return kept.in_order()


class _Kept:
    """The references of one file, each once a node, and no more of a node than it may have."""

    def __init__(self) -> None:
        self._found: dict[_Key, Reference] = {}
        self._counts: Counter[int] = Counter()

    def add(self, key: _Key, anchor: Syntax) -> None:
        """Keeps a reference that is new; its line is that of `anchor`."""
        if key in self._found or self._counts[key[0]] >= MAX_PER_NODE:
            return
        self._counts[key[0]] += 1
        self._found[key] = Reference(*key, anchor.start_point.row + 1)

    def in_order(self) -> tuple[Reference, ...]:
        """Returns what is kept, in order of the nodes."""
        return tuple(sorted(self._found.values(), key=lambda reference: reference.node))


def _matches(root: Syntax, query: Query) -> Iterator[_Match]:
    """Yields matches with the place and the node of their name, a piece of the file at a time.

    A file may be one line of a million calls: all its matches at once would not fit in memory.
    """
    for start in range(root.start_byte, root.end_byte, _CHUNK_BYTES):
        end = start + _CHUNK_BYTES
        cursor = QueryCursor(query, match_limit=_MATCH_LIMIT)
        cursor.set_byte_range(start, end)
        cursor.set_max_start_depth(_MAX_DEPTH)
        placed: list[_Match] = []
        for _, captures in cursor.matches(root):
            anchor = _anchor(captures)
            position = anchor.start_byte
            if start <= position < end:  # one that reaches over the border is found on both sides
                placed.append((position, anchor, captures))
        placed.sort(key=itemgetter(0))
        yield from placed


def _anchor(captures: Mapping[str, list[Syntax]]) -> Syntax:
    """Returns the node that says where a match is; each pattern captures one of these."""
    found = captures.get("call") or captures.get("base") or captures.get("name")
    return (found or captures["module"])[0]


def _use(data: bytes, captures: Mapping[str, list[Syntax]], anchor: Syntax, node: int) -> _Key:
    """Returns a call or a base; one of an expression has no name."""
    kind = ReferenceKind.CALL if "call" in captures else ReferenceKind.INHERIT
    qualifier, name = _path(_bytes(data, anchor))
    if "on" in captures:
        qualifier = _receiver(_bytes(data, captures["on"][0]))
    return node, kind, name, qualifier, ""


def _bytes(data: bytes, node: Syntax) -> bytes:
    """Returns the text of a node, nothing of a long one."""
    start, end = node.start_byte, node.end_byte
    return data[start:end] if end - start <= _MAX_BYTES else b""


@lru_cache(_CACHED_TEXTS)
def _path(raw: bytes) -> tuple[str, str]:
    """Returns what stands before the last part of a name, and this part; nothing of other texts."""
    path = plain_name(raw.decode(errors="replace"))
    qualifier, _, name = path.rpartition(".") if _PLAIN.fullmatch(path) else ("", "", "")
    return qualifier, name


@lru_cache(_CACHED_TEXTS)
def _receiver(raw: bytes) -> str:
    """Returns what a method is called on: a name, or `?` for any other expression."""
    text = raw.decode(errors="replace")
    if _SUPER.fullmatch(text):
        return "super"
    plain = text.replace("::", ".").replace("->", ".").replace("\\", ".").strip().lstrip("$@&*.")
    return plain if plain and _PLAIN.fullmatch(plain) else _EXPRESSION


def _imports(
    captures: Mapping[str, list[Syntax]], rules: ReferenceRules, node: int
) -> Iterator[_Key]:
    """Yields what one import statement, or one name of it, imports."""
    module = _module("".join(map(_text, captures["module"])), rules)
    if "names" in captures:
        names = list(_listed(captures["names"][0], rules.separator))
    else:
        names = [(_text(_first(captures, "name")), _text(_first(captures, "alias")))]
    for text, alias in names:
        inner, _, name = text.strip("'\"").rpartition(rules.separator)
        place = "/".join(filter(None, (module, inner.replace(rules.separator, "/"))))
        if name == "self" and name in rules.here:
            name = ""  # the module itself, beside names of it
        if not name and rules.names_last:
            place, _, name = place.rpartition("/")
        if place or name:
            name = "*" if name == "_" else name
            yield node, ReferenceKind.IMPORT, name, place, alias


def _listed(names: Syntax, separator: str, depth: int = 0) -> Iterator[tuple[str, str]]:
    """Yields name and alias of each item of a list, those of lists in it by their paths."""
    for item in names.named_children[:MAX_PER_NODE]:
        inner, alias = item.child_by_field_name("list"), _field(item, _ALIASES)
        if inner is None:
            name = _field(item, _NAMES) or next(iter(item.named_children), None) if alias else item
            yield _KINDS.sub("", _text(name), count=1), _text(alias)
        elif depth < _MAX_LISTS:
            path = _text(item.child_by_field_name("path"))
            for deeper, known_as in _listed(inner, separator, depth + 1):
                yield f"{path}{separator}{deeper}", known_as


def _first(captures: Mapping[str, list[Syntax]], name: str) -> Syntax | None:
    return captures[name][0] if name in captures else None


def _field(node: Syntax, names: tuple[str, ...]) -> Syntax | None:
    return next(filter(None, map(node.child_by_field_name, names)), None)


def _module(text: str, rules: ReferenceRules) -> str:
    """Returns a module as a path: `./` and `../` lead from the folder of the file."""
    bare = text.strip("'\"<> \n\t").lstrip("\\")
    if rules.separator == ".":
        dots = sum(1 for _ in takewhile(lambda character: character == ".", bare))
        lead = "" if not dots else "./" if dots == 1 else "../" * (dots - 1)
        return (lead + bare[dots:].replace(".", "/")).removesuffix("/") or "."
    if rules.separator != "/":
        bare = bare.removeprefix(rules.separator)
    parts = bare.replace(rules.separator, "/").split("/")
    if parts[0] in rules.here:
        parts[:1] = filter(None, [rules.here[parts[0]]])
    return "/".join(parts)


def _text(node: Syntax | None) -> str:
    if node is None or node.end_byte - node.start_byte > _MAX_BYTES:
        return ""
    return (node.text or b"").decode(errors="replace")


class _Owners:
    """Tells which node a byte is in; asked in order, it looks at each node once."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = nodes
        self._next = 0
        self._whole = 0  # the last node that is no further part of another
        self._open: list[tuple[int, int]] = []  # where a node ends, and who owns what is in it

    def of(self, position: int) -> int:
        """Returns the position, plus 1, of the innermost node; of a split one its first part."""
        nodes = self._nodes
        while self._next < len(nodes) and nodes[self._next].start <= position:
            self._open.append((nodes[self._next].end, self._first_part(self._next) + 1))
            self._next += 1
        while self._open and self._open[-1][0] <= position:
            self._open.pop()
        return self._open[-1][1] if self._open else 0

    def _first_part(self, index: int) -> int:
        node = self._nodes[index]
        if not node.part:
            self._whole = index
        first = self._nodes[self._whole]
        return self._whole if (first.kind, first.name) == (node.kind, node.name) else index
