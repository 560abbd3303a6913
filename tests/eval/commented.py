"""Reads trees of languages that describe a function by a comment before it: C, JavaScript, Rust.

What is a definition is told by the grammar alone, not by the rules of the parser that is measured.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import tree_sitter_c
import tree_sitter_javascript
import tree_sitter_rust
from tree_sitter import Language, Parser

from tests.eval.definitions import Definition

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tree_sitter import Node

_TEST_PATH = re.compile(r"(^|/)(tests?|benches)[./]|(^|/)test_")
_MARKS = re.compile(r"^\s*(?:///?|/?\*+/?)[ \t]?|\*+/\s*$", re.MULTILINE)
_REST = re.compile(r"^\s*(?:@\w|```|#+ )", re.MULTILINE)
"""Where a description ends and tags, examples or headings begin."""

_COMMENTS = frozenset({"comment", "line_comment", "block_comment"})
_BETWEEN = frozenset({"attribute_item", "decorator"})
_WRAPPERS = frozenset({"export_statement", "lexical_declaration", "variable_declaration"})
_FUNCTION_VALUES = frozenset({"arrow_function", "function_expression"})


@dataclass(frozen=True, slots=True)
class _Rules:
    """Kinds of syntax that define, and what a describing comment begins with."""

    grammar: object
    functions: frozenset[str]
    types: frozenset[str]
    comment: tuple[str, ...]
    imports: re.Pattern[str] | None = None
    """Matches an import of a file of the tree, whose path ends with the first group."""


_RULES = {
    ".c": _Rules(
        tree_sitter_c.language(),
        frozenset({"function_definition"}),
        frozenset(),
        ("/*", "//"),
        re.compile(r'^#include "([^"]+)"', re.MULTILINE),
    ),
    ".js": _Rules(
        tree_sitter_javascript.language(),
        frozenset({"function_declaration", "method_definition", "variable_declarator"}),
        frozenset({"class_declaration"}),
        ("/**",),
        re.compile(r"""^import [^;]*? from ["']\.+/([^"']+)["']""", re.MULTILINE),
    ),
    ".rs": _Rules(
        tree_sitter_rust.language(),
        frozenset({"function_item"}),
        frozenset({"struct_item", "enum_item", "trait_item"}),
        ("///", "/**"),
    ),
}
_RULES[".h"] = _RULES[".c"]
SUFFIXES = frozenset(_RULES)


def read(path: str, text: str) -> tuple[str, list[Definition]]:
    """Returns a file without the comments that describe its definitions, and these.

    Lines stay, so that places stay the same.
    """
    suffix = f".{path.rpartition('.')[2]}"
    rules, source = _RULES[suffix], text.encode()
    found: list[Definition] = []
    described: list[Node] = []
    for node in _nodes(_parser(suffix).parse(source).root_node):
        name = _name_of(rules, node)
        if name is None:
            continue
        outer = _outermost(node)
        before = list(_before(outer))
        comments = [each for each in before if each.type in _COMMENTS]
        comments = [each for each in comments if _text(each).startswith(rules.comment)]
        attributes = [each for each in before if each.type in _BETWEEN]
        marks = "".join(_text(each) for each in attributes)
        described += comments
        found.append(
            Definition(
                path,
                name,
                min(each.start_point[0] for each in (outer, *attributes)) + 1,
                outer.end_point[0] + 1,
                _description("\n".join(map(_text, reversed(comments)))),
                is_function=node.type in rules.functions,
                is_test=bool(_TEST_PATH.search(path)) or bool(re.search(r"\btest\b", marks)),
            )
        )
    return _without(source, described).decode(), found


def imports(path: str, text: str) -> Iterator[tuple[str, str]]:
    """Yields what a file imports of its tree: the end of a path, and the statement."""
    pattern = _RULES[f".{path.rpartition('.')[2]}"].imports
    for found in pattern.finditer(text) if pattern else ():
        yield found[1], " ".join(found[0].split())


@cache
def _parser(suffix: str) -> Parser:
    return Parser(Language(_RULES[suffix].grammar))


def _nodes(root: Node) -> Iterator[Node]:
    waiting = [root]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += reversed(node.named_children)


def _name_of(rules: _Rules, node: Node) -> str | None:
    """Returns what a node defines, None for one that is no definition."""
    if node.type not in rules.functions | rules.types:
        return None
    if node.type == "variable_declarator":
        value = node.child_by_field_name("value")
        if value is None or value.type not in _FUNCTION_VALUES:
            return None
    name = node.child_by_field_name("name")
    inner = node.child_by_field_name("declarator")
    while name is None and inner is not None:
        name = inner if inner.type == "identifier" else None
        inner = inner.child_by_field_name("declarator")
    return _text(name) if name is not None else None


def _outermost(node: Node) -> Node:
    """Returns the statement around a definition that begins with it."""
    while node.parent is not None and node.parent.type in _WRAPPERS:
        node = node.parent
    return node


def _before(node: Node) -> Iterator[Node]:
    """Yields the comments and attributes that stand right before a node, the nearest first."""
    below, above = node, node.prev_named_sibling
    while above is not None and above.type in _COMMENTS | _BETWEEN:
        # Some grammars count the end of the line to a comment.
        last = above.end_point[0] - (above.end_point[1] == 0)
        if last < below.start_point[0] - 1:
            break
        yield above
        below, above = above, above.prev_named_sibling


def _description(comment: str) -> str:
    """Returns the words of a comment, up to its tags and examples."""
    words = _MARKS.sub("", comment)
    rest = _REST.search(words)
    return words[: rest.start()] if rest else words


def _text(node: Node) -> str:
    assert node.text is not None
    return node.text.decode()


def _without(source: bytes, nodes: list[Node]) -> bytes:
    for node in sorted(nodes, key=lambda each: -each.start_byte):
        lines = source[node.start_byte : node.end_byte].count(b"\n")
        source = source[: node.start_byte] + b"\n" * lines + source[node.end_byte :]
    return source
