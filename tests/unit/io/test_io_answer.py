"""An answer has one result for each item, in order, and never too many bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.io.answer import Answer
from services.io.errors import PathNotFoundError
from services.runtime.errors import LodestoneError, OverloadedError


def expected(sizes: list[int], limit: int) -> list[str]:
    """What becomes of items that were read in order."""
    told, total = [], 0
    for size in sizes:
        total += max(size, 0)
        told.append("failed" if size < 0 else "refused" if size and total > limit else "read")
    return told


@given(
    st.lists(st.integers(-1, 9), min_size=1, max_size=12),
    st.integers(0, 30),
    st.randoms(use_true_random=False),
)
def test_what_is_refused_depends_on_the_order_of_the_request_alone(
    sizes: list[int], limit: int, random: object
) -> None:
    """Red when items are refused in the order in which threads come by (-1 is a failed item)."""
    positions = list(range(len(sizes)))
    random.shuffle(positions)  # type: ignore[attr-defined]
    answer: Answer[bytes] = Answer(len(sizes), limit, len)
    error = PathNotFoundError("gone")
    for position in positions:
        size = sizes[position]
        result: bytes | LodestoneError = error if size < 0 else b"x" * size
        answer.put([(position, result)], max(size, 0))
        held = sum(len(r) for r in answer._results if isinstance(r, bytes))
        assert held <= limit, "what is refused is held no longer"

    told = [
        "refused"
        if isinstance(r, OverloadedError)
        else "read"
        if isinstance(r, bytes)
        else "failed"
        for r in answer.results()
    ]
    assert told == expected(sizes, limit)
