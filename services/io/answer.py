"""The results of one call: one for each item, in order, and no more bytes than an answer takes."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Generic, TypeVar

from services.runtime.errors import LodestoneError, OverloadedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ResultT = TypeVar("ResultT")


class Answer(Generic[ResultT]):
    """A list of results that threads fill in any order, each position once.

    It holds little more than `max_bytes`, and yet the order of the request alone decides what is
    refused: the first item with which the bytes so far exceed the limit, and all behind it that
    have any. While too much is held the last items go, as they are refused in any case.
    """

    def __init__(self, count: int, max_bytes: int, size_of: Callable[[ResultT], int]) -> None:
        self._results: list[ResultT | LodestoneError | None] = [None] * count
        self._size_of = size_of
        self._max_bytes = max_bytes
        self._bytes = 0
        self._cut = count
        """First position from which on whatever has bytes is refused."""
        self._lock = threading.Lock()

    def put(self, taken: Sequence[tuple[int, ResultT | LodestoneError]], size: int) -> None:
        """Sets what items ended with: positions and results, and the bytes of all these."""
        results = self._results
        with self._lock:
            for position, result in taken:
                results[position] = result
            self._bytes += size
            if self._cut < len(results):
                for position, _ in taken:
                    if position >= self._cut:
                        self._refuse(position)
            while self._bytes > self._max_bytes:
                self._cut -= 1
                self._refuse(self._cut)

    def results(self) -> list[ResultT | LodestoneError]:
        """Returns one result for each item, in order; all must have been set."""
        done = [result for result in self._results if result is not None]
        assert len(done) == len(self._results)
        return done

    def _refuse(self, position: int) -> None:
        """Takes a result back if it has any bytes."""
        result = self._results[position]
        if result is None or isinstance(result, LodestoneError) or not self._size_of(result):
            return
        self._bytes -= self._size_of(result)
        self._results[position] = OverloadedError(
            "The answer would be too large; ask for fewer items.",
            metadata={"limit": str(self._max_bytes)},
        )
