"""How claims end, whichever queue they are of: what is written of failures, and what is counted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.indexer.attempts import delay_seconds, status_after
from services.indexer.outcomes import failed_nodes
from services.indexer.run import RunCounters

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import asyncpg

    from services.indexer.model import ClaimedNode, EmbeddedContent, Failure, NodeId
    from services.indexer.run import Outcome

_MESSAGE_CHARACTERS = 2000

FailureColumns = tuple[list[int], list[int], list[str], list[str], list[str], list[float]]


def fences_of(nodes: Sequence[ClaimedNode]) -> tuple[list[int], list[int]]:
    """Returns the columns by which a statement finds claims: ids and fences."""
    return [node.id for node in nodes], [node.fence for node in nodes]


def failure_columns(
    failed: Sequence[ClaimedNode], failures: Mapping[NodeId, Failure], max_attempts: int
) -> FailureColumns:
    """Returns what a statement writes of failed nodes, by columns.

    They are ids, fences, next statuses, reasons, messages, and delays in seconds.
    """
    return (
        *fences_of(failed),
        [status_after(node, failures[node.id], max_attempts) for node in failed],
        [failures[node.id].reason for node in failed],
        [failures[node.id].message[:_MESSAGE_CHARACTERS] for node in failed],
        [delay_seconds(node, failures[node.id]) for node in failed],
    )


def lasting_failures(
    rows: Collection[asyncpg.Record],
    failed: Sequence[ClaimedNode],
    failures: Mapping[NodeId, Failure],
    stage: str,
    seconds: float,
) -> tuple[RunCounters, list[Outcome]]:
    """Returns what is counted and listed, by rows (id, status), of nodes that failed for good.

    `seconds` is each node's share of the time of its batch.
    """
    final = {row["id"] for row in rows if row["status"] == "failed"}
    counters = RunCounters(nodes_failed=len(final), nodes_pending=-len(final))
    ended = [node for node in failed if node.id in final]
    return counters, failed_nodes(ended, failures, stage, seconds)


def committed(
    contents: Mapping[bytes, EmbeddedContent], *, ended: int, embedded: int
) -> RunCounters:
    """Returns what a committed batch counts: nodes that ended, and those whose text was read."""
    return RunCounters(
        nodes_pending=-ended,
        nodes_embedded=embedded,
        nodes_reused=ended - embedded,
        forwards=len(contents),
        tokens=sum(item.token_count for item in contents.values()),
    )
