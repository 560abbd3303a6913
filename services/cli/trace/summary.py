"""What a critical path says: merged by place, by operation, and how busy each stage was."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from services.cli.trace.critical_path import Node, Segment
    from services.cli.trace.spans import Span
    from services.cli.trace.tree import Tree

CELLS = 60
"""Parts of the whole time whose share each row tells."""

_STAGES = (
    "scan",
    "parse",
    "plan",
    "fetch",
    "embed",
    "tokenize",
    "wait",
    "forward",
    "commit",
)
_STAGE_SPANS = {f"lodestone.indexer.{name}": name for name in _STAGES} | {
    f"lodestone.embed.{name}": name for name in ("tokenize", "wait", "forward")
}
_FAILED = "lodestone.failed"
_COUNTS = ("lodestone.nodes", "lodestone.texts", "lodestone.tokens", _FAILED)
_CANCELLED = "CANCELLED"


@dataclass(frozen=True, slots=True)
class Operation:
    """What spans of one kind do: the service, the name, and on which side of a call they are."""

    service: str
    name: str
    is_client: bool = False


@dataclass(slots=True, eq=False)
class Row:
    """All spans of one operation at one place of the tree that are on the path."""

    operation: Operation
    depth: int
    start_ns: int
    """When the path first came here."""
    own_ns: int = 0
    """Time of the path in these spans themselves."""
    total_ns: int = 0
    """The same, with what is beneath them."""
    spans: set[str] = field(default_factory=set)
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    failed: int = 0
    cells: list[float] = field(default_factory=lambda: [0.0] * CELLS)
    """Share of each part of the whole time that is the rows' own."""
    rows: dict[Operation, Row] = field(default_factory=dict)

    def all_rows(self) -> Iterable[Row]:
        """Yields this row and those beneath it, in the order in which the path came to them."""
        left = [self]
        while left:
            row = left.pop()
            yield row
            left += sorted(row.rows.values(), key=lambda each: each.start_ns)[::-1]


@dataclass(frozen=True, slots=True)
class OperationTime:
    """One operation over the whole run; durations are those of its spans, on the path or not."""

    operation: Operation
    path_ns: int
    path_spans: int
    spans: int
    p50_ns: int
    max_ns: int


@dataclass(frozen=True, slots=True)
class Busy:
    """How long at least one span of a stage was open."""

    stage: str
    busy_ns: int
    spans: int


@dataclass(frozen=True, slots=True)
class SpanFailure:
    """Spans of one operation at one place of the tree that failed of one cause."""

    within: tuple[Operation, ...]
    """The operations around it, from the root."""
    operation: Operation
    error: str
    """The spans' reason; empty where nobody said one."""
    spans: int
    items: int
    """Files, nodes or texts that failed while others of the spans did not."""
    first_ns: int
    """When the first of the spans ended."""
    last_ns: int


def operation_of(span: Span) -> Operation:
    """Returns what a span does."""
    return Operation(span.service, span.name, span.is_client)


def counts_of(span: Span) -> dict[str, int]:
    """Returns what a span counts, by unit: nodes, texts, tokens."""
    found = ((name.rpartition(".")[2], span.attributes.get(name)) for name in _COUNTS)
    return {unit: value for unit, value in found if isinstance(value, int)}


def merged(root: Node, path: Sequence[Segment]) -> Row:
    """Returns the rows of a path as a tree: spans of one operation in the same place are one."""
    top = Row(operation_of(root.span), 0, root.start_ns)
    _count(top, root)
    rows = {root: top}
    for segment in path:
        new = takewhile(lambda node: node not in rows, _upwards(segment.node))
        for node in reversed(list(new)):
            above = rows[node.parent] if node.parent else top
            rows[node] = _row_beneath(above, node, segment.start_ns)
        row = rows[segment.node]
        row.own_ns += segment.duration_ns
        _fill(row.cells, segment, root)
    for row in reversed(list(top.all_rows())):
        row.total_ns = row.own_ns + sum(below.total_ns for below in row.rows.values())
    return top


def operation_times(tree: Tree, path: Sequence[Segment]) -> list[OperationTime]:
    """Returns each operation of a tree, that with the longest time on the path first."""
    durations: dict[Operation, dict[str, int]] = defaultdict(dict)
    for node in tree.nodes():
        span = node.span
        durations[operation_of(span)][_key(node)] = span.end_ns - span.start_ns
    own: dict[Operation, int] = defaultdict(int)
    on_path: dict[Operation, set[str]] = defaultdict(set)
    for segment in path:
        operation = operation_of(segment.node.span)
        own[operation] += segment.duration_ns
        on_path[operation].add(_key(segment.node))
    found = [
        OperationTime(
            operation,
            own[operation],
            len(on_path[operation]),
            len(each),
            sorted(each.values())[len(each) // 2],
            max(each.values()),
        )
        for operation, each in durations.items()
    ]
    return sorted(found, key=lambda each: (-each.path_ns, each.operation.name))


def busy_stages(tree: Tree) -> list[Busy]:
    """Returns the stages of a run, in order, with how long each was busy; they overlap."""
    intervals: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for node in tree.nodes():
        stage = _STAGE_SPANS.get(node.span.name)
        if stage is not None:
            intervals[stage].append((node.start_ns, node.end_ns))
    return [
        Busy(stage, _covered(intervals[stage]), len(intervals[stage]))
        for stage in _STAGES
        if stage in intervals
    ]


def failures(tree: Tree) -> list[SpanFailure]:
    """Returns where spans of a tree failed, on the path or not, the first before the others.

    An error goes up from span to span: the lowest tells where it was, and each that tells how many
    of its items failed. A call that its caller cancelled has not failed of itself.
    """
    found: dict[tuple[tuple[Operation, ...], str], dict[str, Node]] = defaultdict(dict)
    for node in tree.nodes():
        if _is_origin(node):
            steps = tuple(operation_of(step.span) for step in _steps(node))
            found[steps, node.span.error][_key(node)] = node
    each = [
        SpanFailure(
            steps[:-1],
            steps[-1],
            error,
            len(nodes),
            sum(counts_of(node.span).get("failed", 0) for node in nodes.values()),
            min(node.end_ns for node in nodes.values()),
            max(node.end_ns for node in nodes.values()),
        )
        for (steps, error), nodes in found.items()
    ]
    return sorted(each, key=lambda one: one.first_ns)


def _is_origin(node: Node) -> bool:
    if not _has_failed(node):
        return False
    return _FAILED in node.span.attributes or not any(map(_has_failed, node.children))


def _has_failed(node: Node) -> bool:
    return node.span.failed and node.span.error != _CANCELLED


def _steps(node: Node) -> list[Node]:
    return list(_upwards(node))[::-1]


def _upwards(node: Node | None) -> Iterator[Node]:
    while node is not None:
        yield node
        node = node.parent


def _key(node: Node) -> str:
    """Returns what tells spans apart: a forward that served two calls is one, a wait has no id."""
    return node.span.span_id or f"{node.span.name} {node.start_ns}"


def _row_beneath(above: Row, node: Node, start_ns: int) -> Row:
    """Returns the row of a node beneath that of its parent, and counts the node in it."""
    operation = operation_of(node.span)
    row = above.rows.setdefault(operation, Row(operation, above.depth + 1, start_ns))
    _count(row, node)
    return row


def _count(row: Row, node: Node) -> None:
    if _key(node) in row.spans:
        return
    row.spans.add(_key(node))
    row.failed += node.span.failed
    for unit, number in counts_of(node.span).items():
        row.counts[unit] += number


def _fill(cells: list[float], segment: Segment, root: Node) -> None:
    """Adds a segment's share to the parts of the whole time in which it lies."""
    width = (root.end_ns - root.start_ns) / CELLS
    start, end = (at - root.start_ns for at in (segment.start_ns, segment.end_ns))
    for cell in range(int(start / width), min(CELLS, int(end / width) + 1)):
        shared = min(end, (cell + 1) * width) - max(start, cell * width)
        cells[cell] += max(0.0, shared) / width


def _covered(intervals: Sequence[tuple[int, int]]) -> int:
    """Returns the length of the union of intervals."""
    covered, reached = 0, 0
    for start, end in sorted(intervals):
        covered += max(0, end - max(start, reached))
        reached = max(reached, end)
    return covered


def share_of(part_ns: int, root: Node) -> float:
    """Returns a share of the whole time."""
    return part_ns / max(1, root.end_ns - root.start_ns)
