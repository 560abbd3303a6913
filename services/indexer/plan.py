"""Decides what a changed file means for its nodes: which stay, which are new, which go."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence

    from services.indexer.model import NodeId, ParsedNode, StoredNode


@dataclass(frozen=True, slots=True)
class FilePlan:
    """What becomes of a file's nodes."""

    kept: tuple[NodeId | None, ...]
    """For each parsed node the stored one that it is, or None where it is new."""

    removed: tuple[NodeId, ...]
    """Stored nodes that no parsed node is."""


def match_nodes(parsed: Sequence[ParsedNode], stored: Iterable[StoredNode]) -> FilePlan:
    """Returns the plan that keeps as many stored nodes as possible.

    A stored node is kept only for the same text, so its vector stays right. Among equal texts the
    one of the same name and part wins, so that twins do not swap places.
    """
    kept: list[NodeId | None] = [None] * len(parsed)
    left = {node.id: node for node in stored}
    for exact in (True, False):
        waiting: dict[Hashable, list[NodeId]] = defaultdict(list)
        for old in sorted(left.values(), key=lambda item: item.id, reverse=True):
            waiting[_identity(old, exact=exact)].append(old.id)
        for position, node in enumerate(parsed):
            candidates = waiting.get(_identity(node, exact=exact))
            if kept[position] is None and candidates:
                kept[position] = found = candidates.pop()
                del left[found]
    return FilePlan(kept=tuple(kept), removed=tuple(sorted(left)))


def _identity(node: ParsedNode | StoredNode, *, exact: bool) -> Hashable:
    if exact:
        return node.content_hash, node.kind, node.qualified_name, node.part
    return node.content_hash
