"""What follows a failure of a node: another attempt after a while, or the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from services.indexer.model import ClaimedNode, Failure

_BACKOFF_BASE_SECONDS = 0.5
_BACKOFF_MOST_SECONDS = 30.0


def status_after(node: ClaimedNode, failure: Failure, max_attempts: int) -> str:
    """Returns the status of a node whose attempt failed."""
    return "pending" if failure.retryable and node.attempt < max_attempts else "failed"


def delay_seconds(node: ClaimedNode, failure: Failure) -> float:
    """Returns the wait before the next attempt: exponential, spread by the node's id."""
    if not failure.retryable:
        return 0.0
    spread = 0.5 + (node.id * 2654435761 % 1000) / 1000
    return float(min(_BACKOFF_MOST_SECONDS, _BACKOFF_BASE_SECONDS * 2.0**node.attempt) * spread)
