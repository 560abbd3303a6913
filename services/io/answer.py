"""The results of one call: one for each item, in order, and no more bytes than an answer takes."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Generic, TypeVar

from services.runtime.errors import LodestoneError, OverloadedError

if TYPE_CHECKING:
    from collections.abc import Iterable

ResultT = TypeVar("ResultT")


class Answer(Generic[ResultT]):
    """A list of results that threads fill in any order, each position once.

    It holds little more than `max_bytes`, and yet the order of the request alone decides what is
    refused: the first item with which the bytes so far exceed the limit, and all behind it that
    have any. While too much is held the last items go, as they are refused in any case.
    """

    def __init__(self, count: int, max_bytes: int) -> None:
        self._results: list[ResultT | LodestoneError | None] = [None] * count
        self._sizes = [0] * count
        self._max_bytes = max_bytes
        self._bytes = 0
        self._cut = count
        """First position from which on whatever has bytes is refused."""
        self._lock = threading.Lock()

    def put(self, taken: Iterable[tuple[int, ResultT | LodestoneError, int]]) -> None:
        """Sets what items ended with: positions, results and their bytes, 0 for an error."""
        with self._lock:
            for position, result, size in taken:
                assert self._results[position] is None
                if size and position >= self._cut:
                    self._results[position] = self._refusal()
                else:
                    self._results[position] = result
                    self._sizes[position] = size
                    self._bytes += size
            while self._bytes > self._max_bytes:
                self._cut -= 1
                if self._sizes[self._cut]:
                    self._bytes -= self._sizes[self._cut]
                    self._results[self._cut] = self._refusal()

    def results(self) -> list[ResultT | LodestoneError]:
        """Returns one result for each item, in order; all must have been set."""
        done = [result for result in self._results if result is not None]
        assert len(done) == len(self._results)
        return done

    def _refusal(self) -> OverloadedError:
        return OverloadedError(
            "The answer would be too large; ask for fewer items.",
            metadata={"limit": str(self._max_bytes)},
        )
