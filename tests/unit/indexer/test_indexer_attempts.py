"""What follows a failed attempt: later and later within bounds, and not all nodes at one moment."""

from __future__ import annotations

import statistics

import pytest

from services.indexer.attempts import delay_seconds, status_after
from services.indexer.model import ClaimedNode, Failure, NodeId

_LATER = Failure("ERROR_REASON_DEPENDENCY_UNAVAILABLE", "later", retryable=True)
_NEVER = Failure("ERROR_REASON_INVALID_REQUEST", "no")
_LONGEST_SECONDS = 45.0


def _node(number: int, attempt: int) -> ClaimedNode:
    return ClaimedNode(NodeId(number), 1, attempt, b"", "a.py", b"", "f", (0, 1))


def test_each_wait_of_a_node_is_twice_the_one_before_up_to_a_bound() -> None:
    """Red with a constant wait, and with one without a bound."""
    for number in (1, 7, 1000, 2**40 + 3):
        waits = [delay_seconds(_node(number, attempt), _LATER) for attempt in range(1, 101)]

        assert 0.5 <= waits[0] <= 1.5
        assert waits[1:5] == pytest.approx([2 * wait for wait in waits[:4]])
        assert waits == sorted(waits)
        assert max(waits) <= _LONGEST_SECONDS
        assert waits[-1] == waits[10], "the bound"


@pytest.mark.parametrize("attempt", [1, 3, 20])
def test_nodes_that_failed_together_come_back_spread_over_time(attempt: int) -> None:
    """Red without jitter: all of a batch again at one moment."""
    waits = [delay_seconds(_node(number, attempt), _LATER) for number in range(5000, 5128)]
    middle = statistics.median(waits)

    assert len(set(waits)) > 100
    assert min(waits) < 0.6 * middle
    assert max(waits) > 1.4 * middle


def test_only_what_may_go_well_another_time_is_tried_again() -> None:
    assert [status_after(_node(1, attempt), _LATER, 3) for attempt in (1, 2, 3, 4)] == [
        "pending",
        "pending",
        "failed",
        "failed",
    ]
    assert status_after(_node(1, 1), _NEVER, 3) == "failed"
    assert delay_seconds(_node(1, 1), _NEVER) == 0
