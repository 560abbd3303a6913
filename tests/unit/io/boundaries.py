"""What must hold for the nodes of any file: their order and borders, and that nothing is lost."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from services.io.content import content_hash, normal_form
from services.io.parser.languages import RULES
from tests.unit.io.parsing import GRAMMARS, check_nodes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tree_sitter import Node as Syntax

    from services.io.model import Node, ParsedFile
    from services.io.parser.languages import LanguageRules

_HEADS = ("condition", "name", "value", "parameters")


MAX_LOST_BEHIND_ERRORS = 12
"""Words that a file with syntax errors may lose: where a grammar finds its way back, it may take
code for the head of something around it. What is lost in files without errors is a bug."""


def check_file(data: bytes, file: ParsedFile) -> None:
    """Asserts what must hold for the nodes of a file."""
    nodes = list(file.nodes)
    check_nodes(data, nodes)
    check_segments(data, nodes)
    check_parts(data, nodes)
    lost = lost_text(data, file)
    assert len(lost) <= (MAX_LOST_BEHIND_ERRORS if file.has_syntax_errors else 0), lost


def check_segments(data: bytes, nodes: Sequence[Node]) -> None:
    """A node's text is in its segments, which lie in order, and hashes to its content hash.

    A part of a split node opens with the signature, which lies before it.
    """
    for node in nodes:
        segments = node.segments or ((node.start, node.end),)
        assert content_hash(normal_form(data, segments)) == node.content_hash
        for (_, end), (start, _) in itertools.pairwise(segments):
            assert end <= start
        inside = segments[1:] if node.part else segments
        assert all(node.start <= start < end <= node.end for start, end in inside)
        for edge in itertools.chain.from_iterable(segments):
            assert edge == len(data) or data[edge] & 0xC0 != 0x80


def check_parts(data: bytes, nodes: Sequence[Node]) -> None:
    """The parts of a split node follow each other, with comments alone between them."""
    for before, node in itertools.pairwise((None, *nodes)):
        if node is None or node.part == 0:
            continue
        assert before is not None
        assert (before.kind, before.name, before.parent) == (node.kind, node.name, node.parent)
        assert (before.part, before.part_count) == (node.part - 1, node.part_count)
        assert before.end <= node.start
    for node, after in itertools.pairwise((*nodes, None)):
        assert node is not None
        is_last = after is None or after.part == 0
        assert is_last == (node.part == node.part_count - 1)


def lost_text(data: bytes, file: ParsedFile) -> list[tuple[str, int, bytes]]:
    """Returns what is in no node's text: type, line and bytes of each word of code.

    Comments, and the heads of what is around declarations (`if TYPE_CHECKING:`), are left out on
    purpose; so is punctuation. Of a file without grammar a word is what is between blanks.
    """
    covered = bytearray(len(data))
    for node in file.nodes:
        for start, end in node.segments or ((node.start, node.end),):
            covered[start:end] = b"\1" * (end - start)
    rules = RULES.get(file.language)
    if rules is None:
        return [
            ("text", data.count(b"\n", 0, place) + 1, data[place : place + 20])
            for place, byte in enumerate(data)
            if not covered[place] and byte < 0x80 and chr(byte).isprintable() and byte != 0x20
        ]
    root = GRAMMARS.parser(rules.name).parse(data).root_node
    return [
        (leaf.type, leaf.start_point.row + 1, data[leaf.start_byte : leaf.end_byte][:40])
        for leaf in _words(root, rules)
        if not all(covered[leaf.start_byte : leaf.end_byte])
    ]


def _words(root: Syntax, rules: LanguageRules) -> Iterator[Syntax]:
    """Yields the named leaves of a syntax tree that are code."""
    left_out = rules.comments | rules.ignored
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if node.type in left_out:
            continue
        children = node.children
        if not children and node.is_named and (node.text or b"").decode().strip():
            yield node
        if node.type in rules.containers:
            heads = [node.child_by_field_name(name) for name in _HEADS]
            body = node.child_by_field_name("body")
            start = body.start_byte if body is not None and heads[1] is not None else 0
            children = [c for c in children if c not in heads and c.start_byte >= start]
        waiting += children
