"""Chooses which waiting texts share a forward, so that little of it is padding."""

from __future__ import annotations

import sys
from bisect import bisect_left, insort
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from services.embed.fair_line import FairLine

if TYPE_CHECKING:
    from collections.abc import Sequence


class Sized(Protocol):
    """What can be packed: its length in tokens, when and from whom it came, and its route."""

    @property
    def tokens(self) -> int:
        """Length in tokens, at least 1."""
        ...

    @property
    def serial(self) -> int:
        """Order of arrival, unique."""
        ...

    @property
    def route(self) -> str:
        """Only items of one route share a batch."""
        ...

    @property
    def caller(self) -> str:
        """Whoever asked for it; callers take turns."""
        ...


ItemT = TypeVar("ItemT", bound=Sized)


def forward_tokens(lengths: Sequence[int], *, padded: bool) -> int:
    """Returns what a forward of texts of these lengths costs, with padding where there is any."""
    return max(lengths) * len(lengths) if padded else sum(lengths)


def choose_slice(
    lengths: Sequence[int], anchor: int, *, token_budget: int, max_items: int, padded: bool = True
) -> tuple[int, int]:
    """Returns the slice of ascending lengths to run together with the one at `anchor`.

    The slice holds the anchor, at most `max_items` items, and at most `token_budget` tokens: when
    all are padded to the longest, or as they are where nothing is padded. An anchor above the
    budget goes alone. A padded slice grows to the side that wastes less; another takes its shorter
    neighbours first, as more of them fit.
    """
    if not padded:
        return _unpadded_slice(lengths, anchor, token_budget, max_items)
    low, high = anchor, anchor + 1
    while high - low < max_items:
        count = high - low + 1
        longest = lengths[high - 1]
        shorter_fits = low > 0 and longest * count <= token_budget
        longer_fits = high < len(lengths) and lengths[high] * count <= token_budget
        if not shorter_fits and not longer_fits:
            break
        waste_below = longest - lengths[low - 1] if shorter_fits else None
        waste_above = (lengths[high] - longest) * (count - 1) if longer_fits else None
        if waste_below is None or (waste_above is not None and waste_above <= waste_below):
            high += 1
        else:
            low -= 1
    return low, high


def _unpadded_slice(
    lengths: Sequence[int], anchor: int, token_budget: int, max_items: int
) -> tuple[int, int]:
    low, high = anchor, anchor + 1
    total = lengths[anchor]
    while high - low < max_items:
        if low > 0 and total + lengths[low - 1] <= token_budget:
            low -= 1
            total += lengths[low]
        elif high < len(lengths) and total + lengths[high] <= token_budget:
            total += lengths[high]
            high += 1
        else:
            break
    return low, high


class PackingQueue(Generic[ItemT]):
    """Waiting items in order of length; each batch holds the one that has waited longest.

    Taking neighbours in length of the oldest keeps padding low. They may have come later, so that
    what waits is packed within a window: the oldest items up to so many tokens. No item is passed
    by much more than a window, however long the queue is; without that the last text of a call
    would wait for a multiple of what was ahead of it. Callers take turns to get into the window.
    """

    def __init__(self, *, padded: bool = True, window_tokens: int = sys.maxsize) -> None:
        self._padded = padded
        self._window_tokens = window_tokens
        self._window_filled = 0
        self._later: FairLine[ItemT] = FairLine()
        """Empty unless the window is full."""
        self._by_length: list[tuple[str, int, int, ItemT]] = []
        """By route first, so that those which may share a batch lie together."""
        self._by_arrival: dict[int, ItemT] = {}
        self._tokens = 0

    def __len__(self) -> int:
        return len(self._by_length) + len(self._later)

    @property
    def tokens(self) -> int:
        """Sum of the lengths of all waiting items."""
        return self._tokens

    def add(self, item: ItemT) -> None:
        """Adds an item."""
        self._tokens += item.tokens
        self._later.add(item)
        self._fill()

    def share(self, item: ItemT, caller: str) -> None:
        """Has an item come in another caller's turn too, unless it is in the window already."""
        self._later.share(item, caller)

    def discard(self, item: ItemT) -> bool:
        """Removes an item; returns whether it still waited."""
        if not self._later.discard(item):
            if self._by_arrival.pop(item.serial, None) is None:
                return False
            del self._by_length[self._position(item)]
            self._window_filled -= item.tokens
        self._tokens -= item.tokens
        self._fill()
        return True

    def take(self, *, token_budget: int, max_items: int) -> list[ItemT]:
        """Removes and returns the next batch; empty when nothing waits."""
        if not self._by_arrival:
            return []
        oldest = next(iter(self._by_arrival.values()))
        anchor = self._position(oldest)
        # No batch reaches further than max_items to either side of its anchor.
        start = max(0, anchor - max_items)
        while self._by_length[start][0] != oldest.route:
            start += 1
        near = [
            entry
            for entry in self._by_length[start : anchor + max_items]
            if entry[0] == oldest.route
        ]
        low, high = choose_slice(
            [length for _, length, _, _ in near],
            anchor - start,
            token_budget=token_budget,
            max_items=max_items,
            padded=self._padded,
        )
        batch = [item for *_, item in near[low:high]]
        del self._by_length[start + low : start + high]
        taken = 0
        for item in batch:
            del self._by_arrival[item.serial]
            taken += item.tokens
        self._tokens -= taken
        self._window_filled -= taken
        self._fill()
        return batch

    def _fill(self) -> None:
        """Lets items into the window while it has room: the oldest of each caller, in turn."""
        while self._later and self._window_filled < self._window_tokens:
            item = self._later.pop()
            insort(self._by_length, (item.route, item.tokens, item.serial, item))
            self._by_arrival[item.serial] = item
            self._window_filled += item.tokens

    def _position(self, item: ItemT) -> int:
        return bisect_left(self._by_length, (item.route, item.tokens, item.serial))
