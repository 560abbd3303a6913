"""The critical path of a tree of spans: at each moment, the one span that the end waited for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from services.cli.trace.spans import Span


@dataclass(slots=True, eq=False)
class Node:
    """A span in its tree. Its time lies within its parent's."""

    span: Span
    start_ns: int
    end_ns: int
    parent: Node | None = None
    children: list[Node] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Segment:
    """A time in which a span was on the path, and none of its children."""

    node: Node
    start_ns: int
    end_ns: int

    @property
    def duration_ns(self) -> int:
        """How long it is."""
        return self.end_ns - self.start_ns


def critical_path(root: Node) -> list[Segment]:
    """Returns segments that tile the time of the root, in order of time.

    The method is that of CRISP (Zhang et al., "CRISP: Critical Path Analysis of Large-Scale
    Microservice Architectures", USENIX ATC 2022), which Jaeger draws too: walk back from the end of
    a span; the child that ended last before that moment is what the span waited for, so the path
    goes through it, and on from the moment at which that child began. A child that still ran at the
    moment held nothing up. What no child covers is the span's own time.
    """
    segments: list[Segment] = []
    walks = [_Walk(root)]  # of the spans that are open at the moment, the lowest last
    while walks:
        walk = walks[-1]
        child = walk.next_child()
        if child is None:
            _add(walk.node, walk.node.start_ns, walk.moment_ns, segments)
            walks.pop()
        else:
            _add(walk.node, child.end_ns, walk.moment_ns, segments)
            walk.moment_ns = child.start_ns
            walks.append(_Walk(child))
    segments.reverse()
    return segments


class _Walk:
    """The way back through a span, from its end."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.moment_ns = node.end_ns
        last_first = sorted(
            node.children, key=lambda each: (each.end_ns, each.start_ns), reverse=True
        )
        self._left = iter(last_first)

    def next_child(self) -> Node | None:
        """Returns the child that the span waited for at the moment; None for none before it."""
        for child in self._left:
            if child.end_ns <= self.moment_ns and child.start_ns != child.end_ns:
                return child
        return None


def _add(node: Node, start_ns: int, end_ns: int, segments: list[Segment]) -> None:
    if start_ns < end_ns:
        segments.append(Segment(node, start_ns, end_ns))
