"""A trace as one JSON object, for programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from services.cli.report import error_reason, seconds_of, state_name
from services.cli.trace.summary import (
    Operation,
    busy_stages,
    counts_of,
    failures,
    merged,
    operation_of,
    operation_times,
    share_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lodestone.indexer.v1.index_run_service_pb2 import IndexRun
    from services.cli.trace.critical_path import Node, Segment
    from services.cli.trace.summary import Row
    from services.cli.trace.tree import Tree


@dataclass(frozen=True, slots=True)
class TraceReport:
    """What `lodestone trace` tells."""

    trace_id: str
    run: IndexRun | None
    """None when a trace was asked for, and not a run."""
    tree: Tree
    path: Sequence[Segment]

    @property
    def root(self) -> Node:
        """The root of the tree."""
        return self.tree.root


def trace_json(report: TraceReport, *, with_segments: bool) -> dict[str, Any]:
    """Returns the report; `path` is merged, `segments` is not. Times are seconds."""
    root = report.root
    told = {
        "trace_id": report.trace_id,
        "run": _run_json(report.run),
        "seconds": _seconds(root.end_ns - root.start_ns),
        "started_at_unix_ns": root.start_ns,
        "owners": report.tree.owners,
        "missing_spans": report.tree.missing,
        "caller_known": report.tree.caller_known,
        "busy": [
            {
                "stage": each.stage,
                "seconds": _seconds(each.busy_ns),
                "share": _share(each.busy_ns, root),
                "spans": each.spans,
            }
            for each in busy_stages(report.tree)
        ],
        "failures": [
            {
                **_operation_json(each.operation),
                "within": [_operation_json(around) for around in each.within],
                "error": each.error,
                "spans": each.spans,
                "items": each.items,
                "first_offset_seconds": _seconds(each.first_ns - root.start_ns),
                "last_offset_seconds": _seconds(each.last_ns - root.start_ns),
            }
            for each in failures(report.tree)
        ],
        "path": [_row_json(row, root) for row in merged(root, report.path).all_rows()],
        "operations": [
            {
                **_operation_json(each.operation),
                "path_seconds": _seconds(each.path_ns),
                "share": _share(each.path_ns, root),
                "path_spans": each.path_spans,
                "spans": each.spans,
                "p50_seconds": _seconds(each.p50_ns),
                "max_seconds": _seconds(each.max_ns),
            }
            for each in operation_times(report.tree, report.path)
        ],
    }
    if with_segments:
        told["segments"] = [_segment_json(segment, root) for segment in report.path]
    return told


def _run_json(run: IndexRun | None) -> dict[str, Any] | None:
    if run is None:
        return None
    return {
        "name": run.name,
        "state": state_name(run),
        "seconds": round(seconds_of(run), 3),
        "error": {"reason": error_reason(run.error), "message": run.error.message}
        if run.HasField("error")
        else None,
    }


def _row_json(row: Row, root: Node) -> dict[str, Any]:
    return {
        **_operation_json(row.operation),
        "depth": row.depth,
        "offset_seconds": _seconds(row.start_ns - root.start_ns),
        "seconds": _seconds(row.total_ns),
        "own_seconds": _seconds(row.own_ns),
        "own_share": _share(row.own_ns, root),
        "spans": len(row.spans),
        "failed": row.failed,
        "counts": dict(row.counts),
    }


def _segment_json(segment: Segment, root: Node) -> dict[str, Any]:
    span = segment.node.span
    return {
        **_operation_json(operation_of(span)),
        "span_id": span.span_id,
        "offset_seconds": _seconds(segment.start_ns - root.start_ns),
        "seconds": _seconds(segment.duration_ns),
        "failed": span.failed,
        "counts": counts_of(span),
    }


def _operation_json(operation: Operation) -> dict[str, Any]:
    return {
        "service": operation.service,
        "name": operation.name,
        "side": "client" if operation.is_client else "",
    }


def _seconds(nanoseconds: int) -> float:
    return round(nanoseconds / 1e9, 6)


def _share(part_ns: int, root: Node) -> float:
    return round(share_of(part_ns, root), 4)
