"""Parses bytes as the workers do, and tells nodes in short."""

from __future__ import annotations

from services.io.content import normal_form
from services.io.model import Node, ParsedFile, Signature, SkippedFile
from services.io.parser.file import ParseLimits, parse_bytes
from services.io.parser.grammars import Grammars

GRAMMARS = Grammars()
NOWHERE = Signature(0, 0, 0, 0)


def outcome_of(
    source: str | bytes, language: str = "python", max_tokens: int = 256, max_nodes: int = 10_000
) -> ParsedFile | SkippedFile:
    data = source.encode() if isinstance(source, str) else source
    limits = ParseLimits(1 << 24, max_nodes, max_tokens)
    return parse_bytes(data, language, limits, GRAMMARS, signature=NOWHERE, digest=b"")


def nodes_of(source: str | bytes, language: str = "python", max_tokens: int = 256) -> list[Node]:
    outcome = outcome_of(source, language, max_tokens)
    assert isinstance(outcome, ParsedFile)
    return list(outcome.nodes)


def names_of(source: str, language: str = "python") -> list[tuple[str, str]]:
    return [(node.kind.name, node.name) for node in nodes_of(source, language)]


def text_of(source: str | bytes, node: Node) -> str:
    data = source.encode() if isinstance(source, str) else source
    return normal_form(data, node.segments or ((node.start, node.end),))


def hashes_of(source: str, language: str = "python") -> set[bytes]:
    return {node.content_hash for node in nodes_of(source, language)}


def check_nodes(data: bytes, nodes: list[Node]) -> None:
    """Asserts what every file's nodes must be."""
    for number, node in enumerate(nodes, start=1):
        assert 0 <= node.start < node.end <= len(data)
        assert node.start_line == data.count(b"\n", 0, node.start) + 1
        assert node.end_line == data.count(b"\n", 0, node.end - 1) + 1
        data[node.start : node.end].decode()
        assert len(node.content_hash) == 32
        assert 0 <= node.part < node.part_count
        assert node.parent < number
        if node.parent:
            parent = nodes[node.parent - 1]
            assert parent.start <= node.start
            assert node.end <= parent.end
    by_parent: dict[int, int] = {}
    for node in nodes:
        if node.kind.name != "WINDOW":
            assert node.start >= by_parent.get(node.parent, 0), node
        by_parent[node.parent] = node.end
    assert [n.start for n in nodes] == sorted(n.start for n in nodes)
