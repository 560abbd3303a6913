"""From loose spans to the tree of one run, with what is known to be missing."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from services.cli.trace.critical_path import Node
from services.cli.trace.spans import Span

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from services.cli.trace.spans import Found

WAIT = "lodestone.embed.wait"
LOST = "(open or lost)"
QUEUED = "(queued)"
NO_OWNER = "(no owner)"
RUN = "(run)"
_INDEXER = "indexer"
_RPC = ".v1."
_ASKING = ("/CreateIndexRun", "/RetryIndexRun")


@dataclass(frozen=True, slots=True)
class Tree:
    """The spans of a run beneath who asked for it."""

    root: Node
    owners: int
    """Times that somebody worked on the run."""
    missing: int
    """Spans that others tell of and no file holds."""
    caller_known: bool
    """Whether the root is who asked, and not what was asked."""

    def nodes(self) -> Iterator[Node]:
        """Yields every node, parents first."""
        return _beneath(self.root)


def build_tree(found: Found, run_id: str = "", owners_ended: int = 0) -> Tree | None:
    """Returns the tree of a run, or of a whole trace where none is named; None for no spans.

    A run works on when the call that asked for it has been answered: what its owners did hangs at
    the root, which lasts until the last of it has ended. Time between is that of a queued or paused
    run. Work of other runs, and calls that only watch, are left out.

    Args:
        found: the spans.
        run_id: the run.
        owners_ended: times, at least, that somebody's work on it has ended.
    """
    spans = _without(_uncircled({span.span_id: span for span in found.spans}), run_id)
    if not spans:
        return None
    children: dict[str, list[Span]] = defaultdict(list)
    for span in spans.values():
        children[span.parent_id].append(span)
    owners = sorted((span for span in spans.values() if span.run_id), key=_start)
    root = _root_of(spans, owners if run_id else (), children)
    caller = root.parent_id  # a caller's own span, which a service of another machine may have
    lost = {
        parent: some
        for parent, some in children.items()
        if parent and parent not in spans and parent != caller
    }
    node = _node(root, None)
    detached = {span.span_id: span for span in owners if span is not root}
    below = {
        parent: [span for span in some if span.span_id not in detached]
        for parent, some in children.items()
    }
    _grow(node, below)
    working = [_attach(node, span, below) for span in detached.values()]
    working += _add_lost(node, working, filter(None, map(below.__getitem__, lost)), below)
    node.start_ns = min([node.start_ns, *(child.start_ns for child in node.children)])
    node.end_ns = max([node.end_ns, *(child.end_ns for child in node.children)])
    if run_id and working:
        asked = spans.get(owners[0].parent_id, root) if owners else root
        _add_waits(node, working, min(asked.end_ns, working[0].start_ns))
    _join_forwards(node, found.forwards)
    _clip(node)
    unseen = max(0, owners_ended - len(owners) - len(lost))
    return Tree(node, len(owners), len(lost) + unseen + _unanswered(node), not root.parent_id)


def _uncircled(spans: Mapping[str, Span]) -> dict[str, Span]:
    """Returns the spans; of those that are above themselves, what began first has no parent."""
    cut = dict(spans)
    well: set[str] = set()
    for name in spans:
        above: dict[str, None] = {}
        while name in cut and name not in well and name not in above:
            above[name] = None
            name = cut[name].parent_id  # noqa: PLW2901 - upwards
        if name in above:
            places = list(above)
            circle = (cut[each] for each in places[places.index(name) :])
            first = min(circle, key=lambda span: (span.start_ns, span.span_id))
            cut[first.span_id] = replace(first, parent_id="")
        well.update(above)
    return cut


def _without(spans: Mapping[str, Span], run_id: str) -> dict[str, Span]:
    """Returns the spans without those of other runs and of watches, and what is beneath them."""

    def is_wanted(span: Span | None) -> bool:
        while span is not None:
            other = bool(run_id and span.run_id and span.run_id != run_id)
            if other or span.name.rpartition("/")[2].startswith("Watch"):
                return False
            span = spans.get(span.parent_id)
        return True

    return {name: span for name, span in spans.items() if is_wanted(span)}


def _root_of(
    spans: Mapping[str, Span], owners: Sequence[Span], children: Mapping[str, Sequence[Span]]
) -> Span:
    """Returns the topmost span around the first work on a run, or of the trace.

    Owners of a run that nobody's call asked for have nothing above them: something stands for it.
    """
    if not owners:
        asked = [span for span in spans.values() if span.name.endswith(_ASKING)]
        return min(children.get("") or asked or spans.values(), key=_start)
    top = owners[0]
    while top.parent_id in spans:
        top = spans[top.parent_id]
    if top is owners[0] and len(owners) > 1:
        end = max(span.end_ns for span in owners)
        return Span(top.trace_id, RUN, "", _INDEXER, RUN, top.start_ns, end)
    return top


def _grow(node: Node, children: Mapping[str, Sequence[Span]]) -> None:
    """Hangs at a node what has it for a parent, and so on."""
    to_grow = [node]
    while to_grow:
        parent = to_grow.pop()
        below = children.get(parent.span.span_id, ())
        to_grow += [_node(span, parent) for span in below]


def _attach(root: Node, span: Span, children: Mapping[str, Sequence[Span]]) -> Node:
    node = _node(span, root)
    _grow(node, children)
    return node


def _add_lost(
    root: Node,
    owners: Sequence[Node],
    lost: Iterable[Sequence[Span]],
    children: Mapping[str, Sequence[Span]],
) -> list[Node]:
    """Hangs up the children of each lost span; returns what stands for owners that were lost.

    What lies within the time of an owner is beneath it. What lies between two is of one who was
    killed before all of its spans were written, and so is what lies after the last.
    """
    between: dict[int, list[Span]] = defaultdict(list)
    for below in lost:
        start, end = min(map(_start, below)), max(span.end_ns for span in below)
        around = [node for node in owners if node.start_ns <= start and end <= node.end_ns]
        if around:
            _stand_in(around[0], below, children)
        else:
            between[sum(node.start_ns <= start for node in owners)] += below
    return [_stand_in(root, below, children) for below in between.values()]


def _stand_in(parent: Node, below: Sequence[Span], children: Mapping[str, Sequence[Span]]) -> Node:
    """Hangs up what stands for lost spans: it lasts as long as their children."""
    start, end = min(map(_start, below)), max(span.end_ns for span in below)
    node = _node(Span(below[0].trace_id, "", "", _INDEXER, LOST, start, end), parent)
    for span in below:
        _grow(_node(span, node), children)
    return node


def _add_waits(root: Node, working: Sequence[Node], asked_at: int) -> None:
    """Hangs at the root the times at which nobody worked on the run that was there."""
    moment, name = asked_at, QUEUED
    for node in sorted(working, key=lambda each: each.start_ns):
        if node.start_ns > moment:
            trace_id = root.span.trace_id
            _node(Span(trace_id, "", "", _INDEXER, name, moment, node.start_ns), root)
        moment, name = max(moment, node.end_ns), NO_OWNER


def _join_forwards(root: Node, forwards: Sequence[Span]) -> None:
    """Hangs each forward beneath the waits that it served: it has a trace of its own."""
    waits = {node.span.span_id: node for node in _beneath(root) if node.span.name == WAIT}
    for forward in forwards:
        for served in forward.links:
            if served in waits:
                _node(forward, waits[served])


def _clip(root: Node) -> None:
    """Cuts what is beneath each node to its time; what lies outside of it did not hold it up."""
    for node in _beneath(root):
        for child in node.children:
            child.start_ns = min(max(child.start_ns, node.start_ns), node.end_ns)
            child.end_ns = max(min(child.end_ns, node.end_ns), child.start_ns)


def _unanswered(root: Node) -> int:
    """Returns how many calls ended well, and their span in the called service is missing."""
    return sum(
        node.span.is_client
        and not node.span.failed
        and _RPC in node.span.name
        and not any(child.span.name == node.span.name for child in node.children)
        for node in _beneath(root)
    )


def _node(span: Span, parent: Node | None) -> Node:
    node = Node(span, span.start_ns, span.end_ns, parent)
    if parent is not None:
        parent.children.append(node)
    return node


def _beneath(root: Node) -> Iterator[Node]:
    """Yields a node and what is beneath it, parents first; spans nest deeper than calls may."""
    left = [root]
    while left:
        node = left.pop()
        yield node
        left += reversed(node.children)


def _start(span: Span) -> int:
    return span.start_ns
